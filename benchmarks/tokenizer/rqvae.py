"""TR Table 11 on our data: RQ-Kmeans beside an RQ-VAE trained on the same vectors.

    python -m benchmarks.tokenizer.rqvae --beauty DATA/amazon14/beauty --kuairand DATA/kuairand-pure

The RQ-VAE is the usual one (Lee 2022 as TIGER uses it): an MLP down to a latent, residual quantisation of the latent
with straight-through gradients, codebooks started by K-means on a batch, reconstruction + codebook + 0.25 x commitment
loss. Both are measured in the space of the vectors, by the share of their variance that the codes lose.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.tokenizer.data import beauty_vectors, kuairand
from benchmarks.tokenizer.page import heading
from models.tokenizer import metrics, rq_kmeans
from models.tokenizer.kmeans import kmeans
from models.tokenizer.vectors import InMemory

LEVELS, SEEDS = 3, (1, 2, 3)
HIDDEN, LATENT, BATCH, RATE, COMMITMENT = (256, 128), 64, 512, 1e-3, 0.25


class RQVAE(nn.Module):
    """Legend: B batch, D dimensions, E latent, K codes."""

    def __init__(self, dim: int, k: int) -> None:
        super().__init__()
        widths = [dim, *HIDDEN, LATENT]
        self.encoder, self.decoder = _mlp(widths), _mlp(widths[::-1])
        self.codebook = nn.ParameterList(nn.Parameter(torch.zeros(k, LATENT)) for _ in range(LEVELS))

    def quantise(self, z_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of codes, the code tuples [B, 3], and the codebook + commitment loss."""
        residual, total, loss, codes = z_BE, torch.zeros_like(z_BE), z_BE.new_zeros(()), []
        for book_KE in self.codebook:
            code = torch.cdist(residual.detach(), book_KE.detach()).argmin(1)
            chosen = book_KE[code]
            loss = loss + (chosen - residual.detach()).square().mean()
            loss = loss + COMMITMENT * (residual - chosen.detach()).square().mean()
            total, residual = total + chosen, residual - chosen.detach()
            codes.append(code)
        return z_BE + (total - z_BE).detach(), torch.stack(codes, 1), loss

    @torch.no_grad()
    def start(self, x_BD: Tensor, seed: int) -> None:
        residual = self.encoder(x_BD)
        for level, book_KE in enumerate(self.codebook):
            centroid, code = kmeans(InMemory(residual), len(book_KE), seed + level, iterations=10)
            book_KE.copy_(centroid)
            residual = residual - centroid[code.long()]


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train_rqvae(x_ND: Tensor, k: int, seed: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, 3] and reconstruction [N, D]."""
    torch.manual_seed(seed)
    model = RQVAE(x_ND.shape[1], k)
    model.start(x_ND[torch.randperm(len(x_ND))[: 8 * k]], seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(x_ND)).split(BATCH):
            z, _, loss = model.quantise(model.encoder(x_ND[rows]))
            loss = loss + (model.decoder(z) - x_ND[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        z, codes, _ = model.quantise(model.encoder(x_ND))
        return codes.numpy(), model.decoder(z).numpy()


def rows(name: str, x: np.ndarray, k: int, epochs: int) -> list[str]:
    """Lines of the table: mean and spread over the seeds of each way."""
    x_ND = torch.from_numpy(x / x.std())  # one scale for the learning rate; shares of variance do not see it
    variance = float((x_ND - x_ND.mean(0)).square().sum(1).mean())
    lines = []
    for way in ("RQ-VAE", "RQ-Kmeans", "RQ-Kmeans, balanced"):
        found = []
        for seed in SEEDS:
            if way == "RQ-VAE":
                codes, rebuilt = train_rqvae(x_ND, k, seed, epochs)
            else:
                variant = "balanced" if "balanced" in way else "plain"
                books = rq_kmeans.fit(x_ND, LEVELS, k, seed, variant=variant)
                code_NL = rq_kmeans.encode(x_ND, books)
                codes, rebuilt = code_NL.numpy(), rq_kmeans.decode(code_NL, books).numpy()
            levels = metrics.level_metrics(codes, k)
            loss = metrics.reconstruction_loss(x_ND.numpy(), rebuilt, variance)
            found.append([loss, *levels["utilization"], *levels["entropy"], metrics.collision_rate(codes)])
            print(name, way, seed, [round(v, 4) for v in found[-1]], flush=True)
        mean, spread = np.mean(found, 0), np.ptp(found, 0) / 2
        cells = [f"{m:.4f} ± {s:.4f}" for m, s in zip(mean, spread)]
        lines.append(f"| {name} | {way} | " + " | ".join(cells) + " |\n")
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--beauty", type=Path, required=True)
    p.add_argument("--kuairand", type=Path, required=True)
    p.add_argument("--cache", type=Path, default=Path("build"))
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    torch.set_num_threads(1)
    command = "python -m benchmarks.tokenizer.rqvae --beauty DATA/amazon14/beauty --kuairand DATA/kuairand-pure"
    text = heading(
        "RQ-Kmeans beside an RQ-VAE", f"{command} --epochs {args.epochs} --out benchmarks/tokenizer/rqvae.md"
    )
    text += (
        f"Seeds {SEEDS}, mean ± half the range. RQ-VAE: {args.epochs} epochs, hidden {HIDDEN}, latent {LATENT}. Nearest"
        " codes, before IDs are made unique. Reconstruction loss: share of the variance. Entropy in nats; the most is"
        f" {np.log(256):.3f} for 256 codes, {np.log(128):.3f} for 128.\n\n"
        "| vectors | way | reconstruction loss | utilisation 1 | 2 | 3 | entropy 1 | 2 | 3"
        " | items that share a tuple |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    real = kuairand(args.kuairand).vectors
    text += "".join(rows(f"KuaiRand, {len(real):,} x {real.shape[1]}, 128 codes", real, 128, args.epochs))
    words = beauty_vectors(args.beauty, args.cache)
    text += "".join(rows(f"Beauty, {len(words):,} x {words.shape[1]}, 256 codes", words, 256, args.epochs))
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
