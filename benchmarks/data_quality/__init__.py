"""Benchmarks of data quality: how long the suites take, and in how much memory."""
