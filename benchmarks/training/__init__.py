"""Speed and quality of pre-training; each table stands beside the script that made it."""
