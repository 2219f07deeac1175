"""OneRec in PyTorch: tokenizer, model, training, reward, evaluation. Plain tensors and files; imports nothing of ours."""
