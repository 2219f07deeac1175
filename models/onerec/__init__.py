"""The generative model: configuration, features, encoder, MoE decoder, constrained beam search."""
