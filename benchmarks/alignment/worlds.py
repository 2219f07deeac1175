"""Simulated worlds for the alignment benchmarks: each seed its own logs, tokenizer, pre-trained model and reward model.

    python -m benchmarks.alignment.worlds --out prepared/sim --work build/worlds --seeds 1 2 3

Writes PREPARED/seed-N as `prepare.py` does, of the last but one simulated day, with the truth of the last, and
about.json with the sizes, which the tables show. The steps are the day's own (ingest to reward). A seed that is there
is left as it is; one that was cut short goes on from the last step that it finished.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.alignment.harness import folder_of
from benchmarks.alignment.prepare import prepare
from datasets.simulator import simulate
from kfp_components.context import Run
from kfp_components.ingest import step as ingest
from kfp_components.pathways import step as pathways
from kfp_components.pretrain import step as pretrain
from kfp_components.reward import step as reward
from kfp_components.tokenize import step as tokenize
from kfp_components.validate import step as validate
from kfp_components.workspace import Workspace

END = dt.date(2026, 1, 8)
DAY = (END - dt.timedelta(days=1)).isoformat()
SOURCE = "simulated"


def world(seed: int, out: Path, work: Path, *, users: int, items: int, impressions: int, days: int) -> None:
    """Make one world, unless it is there."""
    target = out / f"seed-{seed}"
    if target.exists():
        return
    root = work / f"seed-{seed}"
    logs = root / "logs"
    if not logs.exists():
        root.mkdir(parents=True, exist_ok=True)
        simulate(logs, days=days, end=END, users=users, items=items, impressions=impressions, seed=seed)
    run = Run(workspace=Workspace(root=str(root), source=SOURCE), day=DAY, seed=seed)
    tables = ingest.run(run, data=str(logs))
    features = pathways.run(run, tables=tables, quality=validate.run(run, tables=tables))
    tokenizer = tokenize.run(run, tables=tables, features=features)
    pretrain.run(run, features=features, tokenizer=tokenizer)
    reward.run(run, features=features, tokenizer=tokenizer)
    staged = out / f".seed-{seed}.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    prepare(root / SOURCE, DAY, staged, logs / "truth", users=users, seed=seed)
    staged.rename(target)


def about(out: Path, seeds: list[int], sizes: dict[str, int]) -> dict[str, str]:
    """What the tables say of the worlds: what was asked for, and the rows that the benchmarks use."""
    asked = ", ".join(f"{n:,} {name}" for name, n in sizes.items())
    rows = {
        name: [pq.read_metadata(folder_of(out, s) / f"{name}.parquet").num_rows for s in seeds]
        for name in ("training", "evaluation")
    }
    return {
        "worlds": f"simulated, {asked}; every seed has a world, tokenizer, pre-trained model and P-Score of its own",
        "rows of users, by seed": f"{rows['training']} with a positive on the newest day, {rows['evaluation']} with an "
        f"unseen positive on the day after (seeds {seeds})",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Simulate and train the worlds of the alignment benchmarks.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared worlds")
    parser.add_argument("--work", type=Path, required=True, help="folder for logs and workspaces; may be deleted after")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--impressions", type=int, default=60_000)
    parser.add_argument("--days", type=int, default=8)
    args = parser.parse_args()
    sizes = {name: getattr(args, name) for name in ("users", "items", "impressions", "days")}
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        world(seed, args.out, args.work, **sizes)
        there = sorted(int(p.name.removeprefix("seed-")) for p in args.out.glob("seed-*"))
        (args.out / "about.json").write_text(json.dumps(about(args.out, there, sizes), indent=1) + "\n")
