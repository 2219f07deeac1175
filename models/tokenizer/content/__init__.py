"""Content encoders: caption, tags, ASR, OCR, cover and five frames of an item to a matrix of tokens."""
