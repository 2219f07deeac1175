"""Recall and loss with each user pathway added (after TR Table 2), three seeds.

    python -m benchmarks.training.pathways_ablation --data prepared/kuairand --device cuda --jobs 12

TR's baseline sees the positive history only. A model is trained and evaluated with the same pathways.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.training.quality import Benchmark, Column, arguments, last, main, measured, trained

VARIANTS: dict[str, tuple[str, ...]] = {
    "positive": ("positive",),
    "positive + short": ("positive", "short"),
    "positive + short + lifelong": ("positive", "short", "lifelong"),
    "all (+ static)": ("positive", "short", "lifelong", "static"),
}


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one variant with one seed."""
    inputs = VARIANTS[variant]
    model, tok, metrics = trained(args, seed, {"inputs": inputs})
    return {"loss": last(metrics, "loss")} | measured(args, model, tok, inputs)


if __name__ == "__main__":
    main(
        Benchmark(
            module="benchmarks.training.pathways_ablation",
            title="The pathways, one by one",
            variants=list(VARIANTS),
            one=one,
            columns=[
                Column(key="loss", title="training NTP loss, last fifth"),
                Column(key="held_out_loss", title="held-out NTP loss"),
                Column(key="recall", title="recall@50"),
            ],
        ),
        arguments(__doc__.splitlines()[0]),
    )
