"""Benchmarks of the model and its training: one command each, a table beside it."""
