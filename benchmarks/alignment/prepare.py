"""Copy what the benchmarks read of a day's workspace into one folder, to run them where no pipeline is installed.

    python -m benchmarks.alignment.prepare --workspace var/kuairand-pure --day 2022-05-05 --out prepared/kuairand
    python -m benchmarks.alignment.prepare --workspace var/simulated --day 2025-01-08 --out prepared/sim --truth DIR

The folder holds training.parquet (the newest day), evaluation.parquet (the day after), items.parquet, tokenizer/,
model/ (pre-trained), reward/, and truth/ (the simulator's).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

STEPS = {"tokenizer": "tokenize", "model": "pretrain", "reward": "reward"}


def prepare(workspace: Path, day: str, out: Path, truth: Path | None) -> None:
    """Raises FileNotFoundError naming the first file that the workspace lacks."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in (
        ("training", "features/training"),
        ("evaluation", "features/evaluation"),
        ("items", "lake/items"),
    ):
        shutil.copyfile(workspace / table / f"dt={day}" / "part-0.parquet", out / f"{name}.parquet")
    for name, step in STEPS.items():
        shutil.copytree(workspace / "days" / day / step, out / name, dirs_exist_ok=True)
    if truth is not None:
        shutil.copytree(truth, out / "truth", dirs_exist_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy a day's files for the alignment benchmarks.")
    parser.add_argument("--workspace", type=Path, required=True, help="folder of a source, as var/kuairand-pure")
    parser.add_argument("--day", required=True, help="day that was trained, as 2022-05-05")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--truth", type=Path, help="the simulator's truth folder")
    prepare(**vars(parser.parse_args()))
