"""Loss-free expert balancing against none and against an auxiliary loss: NTP loss and load imbalance, three seeds.

    python -m benchmarks.training.balance --data prepared/kuairand --device cuda --jobs 9

Imbalance is the largest load of an expert over the mean, of the worse of the layers, in the last fifth of training.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.training.quality import Benchmark, Column, arguments, last, main, measured, trained

# gamma of loss-free balancing (model), weight of the auxiliary loss (training)
VARIANTS: dict[str, tuple[float, float]] = {
    "no balancing": (0.0, 0.0),
    "auxiliary loss, weight 0.01": (0.0, 0.01),
    "auxiliary loss, weight 0.1": (0.0, 0.1),
    "loss-free, gamma 0.001 (published sizes)": (0.001, 0.0),
    "loss-free, gamma 0.01 (default)": (0.01, 0.0),
}


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one variant with one seed."""
    gamma, weight = VARIANTS[variant]
    model, tok, metrics = trained(args, seed, {"balance_loss": weight}, {"balance_rate": gamma})
    numbers = {"loss": last(metrics, "loss"), "imbalance": last(metrics, "expert_imbalance")}
    return numbers | measured(args, model, tok)


if __name__ == "__main__":
    main(
        Benchmark(
            module="benchmarks.training.balance",
            title="Balancing the experts",
            variants=list(VARIANTS),
            one=one,
            columns=[
                Column(key="loss", title="training NTP loss, last fifth"),
                Column(key="held_out_loss", title="held-out NTP loss"),
                Column(key="recall", title="recall@50"),
                Column(key="imbalance", title="imbalance (largest load / mean)", digits=2),
            ],
            notes="8 experts, 2 a token, two decoder layers (the laptop size): 1 is even, 4 is the worst.",
        ),
        arguments(__doc__.splitlines()[0]),
    )
