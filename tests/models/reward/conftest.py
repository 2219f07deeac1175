"""A small reward model with visible item residuals, and batches for it."""

from __future__ import annotations

import numpy as np
import torch

from models.onerec.features import Catalogue
from models.reward.pscore import PScore, PScoreConfig
from models.tokenizer.trie import Trie
from models.training.checkpoint import Tokenizer
from tests.models.conftest import random_batch, small_model, small_sids

LENGTHS = ((5, 6, 7), (0, 0, 0), (2, 3, 0))  # short, positive and lifelong events of each user


def pscore(items: int = 20, **choices) -> tuple[PScore, Tokenizer]:
    torch.manual_seed(0)
    sid = small_sids(items, 4, 0)
    config = PScoreConfig(codebook_size=4, items=items, static_features=3, **choices)
    model = PScore(config, torch.from_numpy(sid)).eval()
    with torch.no_grad():
        model.item_residual.weight.normal_(std=0.3)
        model.item_category_N[:-1] = torch.arange(items) % 4  # category 0 is unknown
    return model, Tokenizer(Catalogue(np.arange(items)), sid, Trie.build(sid, 4), 4)


def batch_of(lengths: tuple = LENGTHS, seed: int = 0) -> dict[str, torch.Tensor]:
    return random_batch(small_model()[0], list(lengths), seed)
