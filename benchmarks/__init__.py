"""Benchmarks: one command each, results beside the code that made them."""
