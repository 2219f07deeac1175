"""Quality on public data: one harness, our models and baselines, the published numbers beside them (README.md)."""
