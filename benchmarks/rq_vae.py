"""RQ-VAE, the tokenizer of TIGER (Rajput et al. 2023, arXiv 2305.05065, section 3.1): what RQ-Kmeans is compared with.

    model = train_rq_vae(x_ND, codes=256, seed=1, epochs=60)
    codes_NL, latent_NE = model.encode(x_ND)

Encoder and decoder are perceptrons; the latent is quantised level by level with the straight-through estimator, loss =
reconstruction + codebook + beta x commitment. Codebooks start from K-means of a batch.

Legend: N items, B batch, D input width, E latent width, K codes, L levels.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from models.tokenizer.assign import assign
from models.tokenizer.kmeans import kmeans
from models.tokenizer.vectors import InMemory

HIDDEN, COMMITMENT, RATE = (256, 128), 0.25, 1e-3


class RQVAE(nn.Module):
    """`quantise` is the greedy residual assignment; `loss` that of a batch."""

    def __init__(self, width: int, codes: int, levels: int, latent: int) -> None:
        super().__init__()
        sizes = (width, *HIDDEN, latent)
        self.encoder, self.decoder = _perceptron(sizes), _perceptron(sizes[::-1])
        self.codebook = nn.ParameterList(nn.Parameter(torch.zeros(codes, latent)) for _ in range(levels))

    def quantise(self, z_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of codes, straight through; the code tuples [B, L]; the codebook and commitment losses together."""
        residual, total, codes, loss = z_BE, torch.zeros_like(z_BE), [], z_BE.new_zeros(())
        for book_KE in self.codebook:
            code = assign(residual.detach(), book_KE.detach())[0]
            chosen = book_KE[code]
            loss = loss + (chosen - residual.detach()).square().mean()
            loss = loss + COMMITMENT * (residual - chosen.detach()).square().mean()
            total, residual = total + chosen, residual - chosen.detach()
            codes.append(code)
        return z_BE + (total - z_BE).detach(), torch.stack(codes, 1), loss

    def loss(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The whole loss, and the codes [B, L] it was made with."""
        z, codes, loss = self.quantise(self.encoder(x_BD))
        return loss + (self.decoder(z) - x_BD).square().mean(), codes

    @torch.no_grad()
    def encode(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [N, L] and latents [N, E]."""
        z_NE = self.encoder(x_ND)
        return self.quantise(z_NE)[1], z_NE

    @torch.no_grad()
    def start(self, x_BD: Tensor, seed: int) -> None:
        """Codebooks from K-means of a batch, level by level."""
        residual = self.encoder(x_BD)
        for level, book_KE in enumerate(self.codebook):
            centroid, code = kmeans(InMemory(residual), len(book_KE), seed + level, iterations=10)
            book_KE.copy_(centroid)
            residual = residual - centroid[code.long()]

    @torch.no_grad()
    def revive(self, x_ND: Tensor, used_LK: Tensor) -> None:
        """Unused codes of a level move to residuals of random items, without which most codes die."""
        residual = self.encoder(x_ND[torch.randint(len(x_ND), (used_LK.shape[1],))])
        for used_K, book_KE in zip(used_LK, self.codebook):
            dead = (~used_K).nonzero().flatten()
            book_KE[dead] = residual[: len(dead)]
            residual = residual - book_KE[assign(residual, book_KE)[0]]


def _perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train_rq_vae(
    x_ND: Tensor,
    *,
    codes: int,
    seed: int,
    epochs: int,
    levels: int = 3,
    latent: int = 64,
    batch: int = 512,
    revive: bool = False,
) -> RQVAE:
    """Everything follows from the seed. `x_ND` is best scaled to a standard deviation of 1."""
    torch.manual_seed(seed)
    model = RQVAE(x_ND.shape[1], codes, levels, latent)
    model.start(x_ND[torch.randperm(len(x_ND))[: 8 * codes]], seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(epochs):
        used_LK = torch.zeros(levels, codes, dtype=torch.bool)
        for rows in torch.randperm(len(x_ND)).split(batch):
            loss, found_BL = model.loss(x_ND[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for level in range(levels):
                used_LK[level, found_BL[:, level]] = True
        if revive:
            model.revive(x_ND, used_LK)
    return model
