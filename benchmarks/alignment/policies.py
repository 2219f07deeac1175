"""ECPO beside RSFT alone, GRPO, GBPO and DPO on the same data, seeds and steps.

python -m benchmarks.alignment.policies --prepared prepared/kuairand --seeds 1 2 3 --device cpu --jobs 8
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.alignment.harness import Benchmark, Column, arguments, main
from benchmarks.alignment.measure import COMMON, NO_POLICY, PASS, SHORT, STRONG, aligned, evaluation_of, loop_numbers
from benchmarks.alignment.truth import true_numbers

# What alignment must never be: all weight on P-Score, nothing that holds the policy to what users did.
HARMFUL = STRONG | {"preference.policy_weight": 10.0, "preference.item_policy_weight": 10.0, "rsft_weight": 0.0}
VARIANTS: dict[str, dict[str, Any] | None] = {
    **COMMON,
    "rsft + format": SHORT | NO_POLICY,
    "ecpo": STRONG,
    "ecpo no rsft": HARMFUL,
    "grpo": STRONG | {"objective.name": "grpo"},
    "grpo kl": STRONG | {"objective.name": "grpo", "objective.kl_beta": 0.04},
    "gbpo": STRONG | {"objective.name": "gbpo"},
    "dpo": STRONG | {"objective.name": "dpo", "sync_every": 0},
    "iterative dpo": STRONG | {"objective.name": "dpo", "sync_every": 5},
    "iterative dpo of sessions (V1)": STRONG
    | {
        "objective.name": "dpo",
        "sync_every": 5,
        "rewards": {"session": 1.0},
        "rollout.group_size": 128,
        "rollout.session_items": 5,
    },
    # The rows above are never stopped, to show what would happen. This one has the daily limit, looked at more often.
    "ecpo no rsft, with the stop": HARMFUL | {"allowed_recall_loss": 0.05, "check_every": 5, "probe_users": 1024},
}


def one(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    evaluation, changes = evaluation_of(args), VARIANTS[variant]
    model, loop = evaluation.pretrained, {}
    if changes is not None:
        model, metrics = aligned(args, seed, changes)
        loop = loop_numbers(metrics) | {"curve": metrics["curve"]}
        if "allowed_recall_loss" in changes:
            loop |= {
                "stopped_at": metrics["steps"],
                "kept": float(metrics["kept"] == "aligned"),
                "why": metrics["reason"],
            }
    top = evaluation.top(model)
    widths = tuple(w for w in PASS if w <= args.widest)
    result = evaluation.numbers(model, seed, passes=False, top=top) | true_numbers(evaluation, args, top)
    return result | evaluation.passes(model, widths) | loop


if __name__ == "__main__":
    parser = arguments(__doc__ or "")
    parser.add_argument("--widest", type=int, default=max(PASS), help="widest beam that is measured (512)")
    main(
        Benchmark(
            module="benchmarks.alignment.policies",
            title="Policy objectives: reward, recall, legality, gradients",
            variants=list(VARIANTS),
            changes=VARIANTS,
            one=one,
            columns=[
                Column(key="p_score", title="P-Score top 10"),
                Column(key="pass@8", title="pass@8"),
                Column(key="pass@64", title="pass@64"),
                Column(key="pass@512", title="pass@512"),
                Column(key="true_reward", title="true reward", digits=3),
                Column(key="true_gain", title="gain", digits=3),
                Column(key="recall", title="recall@50"),
                Column(key="recall_change", title="change"),
                Column(key="recall_change_users", title="its half-width over users"),
                Column(key="legality", title="legal free samples", digits=3),
                Column(key="grad_norm_max", title="largest gradient norm", digits=1),
                Column(key="grad_spikes", title="spikes", digits=1),
                Column(key="ratio_max", title="largest ratio", digits=1),
                Column(key="clipped", title="outside the clip", digits=3),
                Column(key="align_seconds", title="seconds", digits=0),
                Column(key="cpu_seconds", title="of them on the CPU", digits=0),
                Column(key="stopped_at", title="steps until the stop", digits=0),
                Column(key="kept", title="share of seeds that ship it", digits=2),
            ],
            notes="pass@K is the best P-Score of K items by beam search, mean over users. A spike is a gradient norm "
            "over five times the median of the twenty steps before. The pairs of V1's row are lists of five, 25 a user "
            "from 128 items, scored by V1's session-wise reward; all others compare 32 single items by P-Score.",
        ),
        parser,
    )
