"""Recall, NDCG, legality and the most-popular floors."""
