"""Reward model selection at serving time: generate K items by beam search, return the ten with the highest P-Score.

    python -m benchmarks.alignment.selection --prepared prepared/kuairand --seeds 1 --jobs 4

`true` columns need the simulator's truth folder. Times are of one user a call, as serving answers, on the CPU.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from benchmarks.alignment.harness import Benchmark, Column, arguments, main
from benchmarks.alignment.measure import TOP, Evaluation
from benchmarks.alignment.truth import of_items, truth_of
from models.onerec.ranking import rank_unseen

WIDTHS = (16, 32, 64, 128, 512)
VARIANTS = ("beam order", *(f"best of {width}" for width in WIDTHS))
TIMED = 50


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    evaluation = Evaluation(args)
    width = 128 if variant == "beam order" else int(variant.split()[-1])
    select = variant != "beam order"
    top, seconds = np.full((len(evaluation.rows), TOP), -1), []
    for at, row in enumerate(evaluation.rows):
        context = {k: v.to(args.device) for k, v in evaluation.data.context(np.array([row])).items()}
        seen = [evaluation.tok.catalogue.index(evaluation.data.seen.row(row))]
        begun = time.monotonic()
        item = rank_unseen(evaluation.pretrained, context, evaluation.trie, seen, TOP, width, keep_all=select)[0][0]
        if select and len(item):
            score = evaluation.p_score.score(context, torch.from_numpy(item)[None].to(args.device))[0].cpu().numpy()
            item = item[np.argsort(-score, kind="stable")]
        seconds.append(time.monotonic() - begun)
        top[at, : min(TOP, len(item))] = item[:TOP]
    score = evaluation.score(top)
    found = {
        "p_score": float(np.nanmean(score)),
        "recall10": float(evaluation.recall(top).mean()),
        "milliseconds": 1000 * float(np.median(seconds[-TIMED:])),
    }
    if (args.prepared / "truth").exists():
        found["true_reward"] = float(np.nanmean(of_items(truth_of(evaluation, args), top)))
    return found


if __name__ == "__main__":
    main(
        Benchmark(
            module="benchmarks.alignment.selection",
            title="Reward model selection at serving time",
            variants=VARIANTS,
            one=one,
            columns=[
                Column(key="p_score", title="P-Score top 10"),
                Column(key="recall10", title="recall@10"),
                Column(key="true_reward", title="true reward", digits=3),
                Column(key="milliseconds", title="ms a user", digits=1),
            ],
        ),
        arguments(__doc__ or ""),
    )
