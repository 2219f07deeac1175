"""The default configuration's loss and gradient from a seed, as they were when the file was written.

A change that should not alter the mathematics must not alter these numbers; one that should says so and takes new
ones: `python -m tests.models.onerec.test_golden_forward` prints them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.onerec.config import onerec_laptop
from models.onerec.model import OneRec
from models.training.losses import item_loss, ntp_loss
from tests.models.conftest import random_batch, small_sids

LENGTHS = [(20, 64, 64), (3, 0, 9), (0, 0, 0), (20, 11, 1)]
GOLDEN = {
    "ntp": 8.679890632629395,
    "item": 6.134365081787109,
    "level_2": 3.019223690032959,
    "gradient": 23.495197296142578,
}


def losses() -> dict[str, float]:
    """Losses of a seeded model on a seeded batch, and the norm of their gradient."""
    torch.manual_seed(5)
    sid = torch.from_numpy(small_sids(300, 16, 1))
    model = OneRec(onerec_laptop(codebook_size=16, items=300, static_features=3), sid).train()
    batch = random_batch(model, LENGTHS, seed=2)
    target = torch.from_numpy(np.random.default_rng(3).integers(0, 300, (4, 6)))
    weight = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 0, 0.5], [0, 1, 1, 1, 1, 1]]).float()
    z, mask = model.encode(batch)
    ntp, levels = ntp_loss(model, target, weight, z, mask)
    item = item_loss(model, target, weight, z)
    (ntp + item).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return {"ntp": ntp.item(), "item": item.item(), "level_2": levels[2].item(), "gradient": norm.item()}


def test_losses_and_gradient_are_those_of_the_file():
    assert losses() == pytest.approx(GOLDEN, rel=2e-6)


if __name__ == "__main__":
    print(losses())
