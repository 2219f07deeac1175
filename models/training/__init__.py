"""Data loading, pre-training and alignment loops, checkpoints."""
