"""TR Table 11 on our data: RQ-Kmeans beside an RQ-VAE trained on the same vectors.

    python -m benchmarks.tokenizer.rqvae --beauty DATA/amazon14/beauty --kuairand DATA/kuairand-pure

The RQ-VAE is TIGER's (benchmarks/rq_vae.py), without revival of unused codes. Both are measured in the space of the
vectors, by the share of their variance that the codes lose.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.rq_vae import HIDDEN, train_rq_vae
from benchmarks.tokenizer.data import beauty_vectors, kuairand
from benchmarks.tokenizer.page import heading
from models.tokenizer import metrics, rq_kmeans

LEVELS, SEEDS, LATENT = 3, (1, 2, 3), 64


def rows(name: str, x: np.ndarray, k: int, epochs: int) -> list[str]:
    """Lines of the table: mean and spread over the seeds of each way."""
    x_ND = torch.from_numpy(x / x.std())  # one scale for the learning rate; shares of variance do not see it
    variance = float((x_ND - x_ND.mean(0)).square().sum(1).mean())
    lines = []
    for way in ("RQ-VAE", "RQ-Kmeans", "RQ-Kmeans, balanced"):
        found = []
        for seed in SEEDS:
            if way == "RQ-VAE":
                model = train_rq_vae(x_ND, codes=k, seed=seed, epochs=epochs, levels=LEVELS, latent=LATENT)
                code_NL, z_NE = model.encode(x_ND)
                codes = code_NL.numpy()
                with torch.no_grad():
                    rebuilt = model.decoder(model.quantise(z_NE)[0]).numpy()
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
    p.add_argument("--beauty", type=Path, help="left out: KuaiRand alone")
    p.add_argument("--kuairand", type=Path, help="left out: Beauty alone")
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
    if args.kuairand:
        real = kuairand(args.kuairand).vectors
        text += "".join(rows(f"KuaiRand, {len(real):,} x {real.shape[1]}, 128 codes", real, 128, args.epochs))
    if args.beauty:
        words = beauty_vectors(args.beauty, args.cache)
        text += "".join(rows(f"Beauty, {len(words):,} x {words.shape[1]}, 256 codes", words, 256, args.epochs))
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
