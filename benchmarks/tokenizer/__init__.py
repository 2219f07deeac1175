"""Speed and quality of the tokenizer: one command a table."""
