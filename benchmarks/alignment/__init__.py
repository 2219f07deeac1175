"""Benchmarks of alignment, one command each; they read prepared folders (`prepare.py`) and import only models."""
