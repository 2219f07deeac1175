"""Semantic IDs: item representation, residual K-means, unique assignment, trie, daily refresh."""
