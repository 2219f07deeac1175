"""Code tables [N, 3] of a catalogue by every way that the end-to-end benchmark compares.

nearest, unique = by_kmeans(x_ND, k=128, seed=1)        # collisions left in, and one ID an item

Needs no more than NumPy, SciPy and torch, so that it runs where there is a GPU and little else.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.rq_vae import train_rq_vae
from models.tokenizer import rq_kmeans
from models.tokenizer.unique import unique_codes

LEVELS = 3
EPOCHS, LATENT = 200, 32  # of the RQ-VAE, as in benchmarks.quality.prepare


def random_codes(items: int, k: int, seed: int) -> np.ndarray:
    """Distinct random tuples [N, LEVELS]."""
    packed = np.random.default_rng(seed).choice(k**LEVELS, items, replace=False)
    return np.stack([packed // k**level % k for level in reversed(range(LEVELS))], 1)


def both(nearest: np.ndarray, x_ND: np.ndarray, books: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Codes as they are and one ID an item, int16."""
    return nearest.astype(np.int16), unique_codes(nearest, x_ND, books).astype(np.int16)


def by_kmeans(
    x_ND: np.ndarray, k: int, seed: int, device: str = "cpu", variant: str = "plain"
) -> tuple[np.ndarray, np.ndarray]:
    """RQ-Kmeans of vectors: nearest codes, and unique ones."""
    x = torch.from_numpy(x_ND).to(device)
    books = rq_kmeans.fit(x, LEVELS, k, seed, variant=variant)
    nearest = rq_kmeans.encode(x, books).cpu().numpy()
    return both(nearest, x_ND, [b.cpu().numpy() for b in books])


def by_rq_vae(x_ND: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """TIGER's tokenizer: nearest codes, and unique ones by distance of the latents."""
    x = torch.from_numpy(x_ND / x_ND.std()).float()
    model = train_rq_vae(x, codes=k, seed=seed, epochs=EPOCHS, latent=LATENT, batch=1024, revive=True)
    nearest, latent = (t.numpy() for t in model.encode(x))
    return both(nearest, latent, [book.detach().numpy() for book in model.codebook])
