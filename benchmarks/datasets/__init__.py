"""Speed and memory of the datasets room."""
