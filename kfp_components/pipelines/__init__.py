"""The four pipelines of a day, in the order in which they run: features, tokenizer, training, release."""
