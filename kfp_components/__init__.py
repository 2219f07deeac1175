"""Components and pipelines of the daily run: each step calls one room and keeps its outcome."""
