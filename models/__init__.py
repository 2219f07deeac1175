"""OneRec in PyTorch: tokenizer, model, training, reward, evaluation. Tensors and files; imports nothing of ours."""
