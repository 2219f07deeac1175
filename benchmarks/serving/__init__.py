"""Benchmarks of serving: one command and one table each."""
