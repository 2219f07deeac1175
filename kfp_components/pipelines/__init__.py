"""The pipelines of a day, in order: features, tokenizer, training, gate, shadow, canary, promote."""
