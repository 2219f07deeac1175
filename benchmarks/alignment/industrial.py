"""Industrial reward: the share of a marked class falls (or rises) to its target, and the P-Score stays.

    python -m benchmarks.alignment.industrial --prepared prepared/kuairand --seeds 1 2 3 --jobs 6

The class to show less of is the tag with the largest share of the pre-trained model's top 10, target half of that
share. The class to show more of is the long tail (beyond the median rank), target twice its share.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import numpy as np

from benchmarks.alignment.harness import Benchmark, Column, arguments, main
from benchmarks.alignment.measure import STRONG, TOP, aligned, evaluation_of
from models.evaluation.floors import popularity
from models.reward.industrial import Rule, Traits

# Changes to the daily default that all variants share: rules speak through the policy objective, so it is louder here.
BASE = STRONG | {"preference.item_policy_weight": 3.0}
VARIANTS = ("no rule", "less of a tag", "more long tail", "both")


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    evaluation, p = evaluation_of(args), args.prepared
    popular = popularity([p / "training.parquet"])[0]
    traits = Traits.read(p / "items.parquet", evaluation.tok.catalogue, popular)
    before = evaluation.top_before[:, :TOP]
    shown = before[before >= 0]
    tags = Counter(t for i in shown for t in (traits.tags[int(i)].as_py() or []))
    tag, count = tags.most_common(1)[0]
    less = Rule(name="tag", tags=(tag,), share=0.5 * count / len(shown), factor=args.factor)
    start = len(popular) // 2
    tail = float((traits.rank_N[shown] >= start).mean())
    more = Rule(name="tail", popularity_rank_from=start, share=min(0.9, max(2 * tail, 0.02)), factor=2 - args.factor)
    rules = {"no rule": (), "less of a tag": (less,), "more long tail": (more,), "both": (less, more)}[variant]
    model, _ = aligned(args, seed, BASE | {"rules": rules})
    top = evaluation.top(model)
    after = top[:, :TOP]
    marked = {"tag": traits.marked(less, 0), "tail": traits.marked(more, 0)}
    result: dict[str, Any] = {"tag": int(tag), "tail_from": start, "targets": {r.name: r.share for r in (less, more)}}
    for name, mark in marked.items():
        result[f"{name}_before"] = float(mark[shown].mean())
        result[f"{name}_after"] = float(mark[after[after >= 0]].mean())
        result[f"{name}_target"] = {"tag": less, "tail": more}[name].share
    score, base = evaluation.score(after), evaluation.score(before)
    gap = np.nanmean(score, 1) - np.nanmean(base, 1)
    result |= {"p_score": float(np.nanmean(score)), "p_score_change": float(np.nanmean(gap))}
    result |= {"p_score_users": float(1.96 * np.nanstd(gap) / len(gap) ** 0.5)}
    return result | {"recall": float(evaluation.recall(top).mean())}


if __name__ == "__main__":
    parser = arguments(__doc__ or "")
    parser.add_argument("--factor", type=float, default=0.5, help="alpha of the down-weighting; the boost is 2 - alpha")
    main(
        Benchmark(
            module="benchmarks.alignment.industrial",
            title="Industrial reward: share of a class and P-Score",
            variants=VARIANTS,
            changes=dict.fromkeys(VARIANTS, BASE),
            one=one,
            columns=[
                Column(key="tag_before", title="tag before", digits=3),
                Column(key="tag_after", title="after", digits=3),
                Column(key="tag_target", title="target", digits=3),
                Column(key="tail_before", title="tail before", digits=3),
                Column(key="tail_after", title="after", digits=3),
                Column(key="tail_target", title="target", digits=3),
                Column(key="p_score", title="P-Score top 10"),
                Column(key="p_score_change", title="change"),
                Column(key="p_score_users", title="its half-width over users"),
                Column(key="recall", title="recall@50"),
            ],
            notes="`no rule` is alignment without rules: the P-Score with rules is to be read beside it.",
        ),
        parser,
    )
