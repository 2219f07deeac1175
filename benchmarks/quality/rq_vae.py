"""RQ-VAE, the tokenizer of TIGER (Rajput et al. 2023, arXiv 2305.05065, section 3.1): for the TIGER-style row only.

Encoder and decoder are perceptrons; the latent is quantised level by level with the straight-through estimator, loss =
reconstruction + codebook + beta x commitment. Codebooks start from K-means of the first batch, as in the paper; a code
that nothing used in an epoch is placed on a random latent, without which most codes die.

Legend: N items, F input width, D latent width, K codes, L levels.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tokenizer.assign import assign
from models.tokenizer.kmeans import kmeans
from models.tokenizer.vectors import InMemory

LATENT, HIDDEN, BETA = 32, (256, 128), 0.25


class RQVAE(nn.Module):
    """`quantise` is the greedy residual assignment; `forward` returns the loss of a batch."""

    def __init__(self, width: int, levels: int, codes: int) -> None:
        super().__init__()
        sizes = (width, *HIDDEN, LATENT)
        self.encoder, self.decoder = _perceptron(sizes), _perceptron(sizes[::-1])
        self.book_LKD = nn.Parameter(torch.randn(levels, codes, LATENT) * 0.05)

    def quantise(self, z_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [N, L], their sum [N, D], and the codebook and commitment losses together."""
        residual, total, codes, loss = z_ND, torch.zeros_like(z_ND), [], z_ND.new_zeros(())
        for book_KD in self.book_LKD:
            code = assign(residual.detach(), book_KD.detach())[0]
            vector = book_KD[code]
            loss = loss + F.mse_loss(vector, residual.detach()) + BETA * F.mse_loss(residual, vector.detach())
            total, residual = total + vector, residual - vector.detach()
            codes.append(code)
        return torch.stack(codes, 1), total, loss

    def forward(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x_NF)
        codes, total, loss = self.quantise(z)
        return F.mse_loss(self.decoder(z + (total - z).detach()), x_NF) + loss, codes


def _perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit_rq_vae(
    x_NF: np.ndarray, levels: int, codes: int, seed: int, epochs: int = 200, batch: int = 1024
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Nearest codes [N, L], latents [N, D] and codebooks, ready for `unique_codes`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(x_NF).float()
    x = x / x.std()
    model = RQVAE(x.shape[1], levels, codes)
    with torch.no_grad():
        residual = model.encoder(x[torch.from_numpy(rng.permutation(len(x))[: max(8 * codes, 2048)])])
        for level in range(levels):
            book_KD, code_N = kmeans(InMemory(residual), codes, seed, iterations=10)
            model.book_LKD[level] = book_KD
            residual = residual - book_KD[code_N]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        used = torch.zeros(levels, codes, dtype=torch.bool)
        for part in np.array_split(rng.permutation(len(x)), max(1, len(x) // batch)):
            loss, found = model(x[torch.from_numpy(part)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            for level in range(levels):
                used[level, found[:, level]] = True
        with torch.no_grad():
            _revive(model, x, used, rng)
    with torch.no_grad():
        z = model.encoder(x)
        return model.quantise(z)[0].numpy(), z.numpy(), [b.numpy() for b in model.book_LKD.detach()]


def _revive(model: RQVAE, x_NF: Tensor, used_LK: Tensor, rng: np.random.Generator) -> None:
    """Unused codes of a level move to residuals of random items."""
    residual = model.encoder(x_NF[torch.from_numpy(rng.integers(len(x_NF), size=used_LK.shape[1]))])
    for level, book_KD in enumerate(model.book_LKD):
        dead = (~used_LK[level]).nonzero().flatten()
        book_KD[dead] = residual[: len(dead)]
        residual = residual - book_KD[assign(residual, book_KD)[0]]
