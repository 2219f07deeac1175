"""Copy what the training benchmarks read of a workspace into one folder, to run them where no pipeline is installed.

    python -m benchmarks.training.prepare --workspace var/kuairand-pure --day 2022-05-05 --out prepared/kuairand

The folder holds training/dt=*.parquet (the last `days`), evaluation.parquet (the day after) and tokenizer/. Only
columns that training and evaluation read are kept, in row groups of 4,096 rows.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from models.training.stream import COLUMNS

ROWS = 4096


def prepare(workspace: Path, day: str, days: int, out: Path) -> None:
    """Raises FileNotFoundError naming the first file that the workspace lacks."""
    (out / "training").mkdir(parents=True, exist_ok=True)
    folders = sorted(f for f in (workspace / "features" / "training").glob("dt=*") if f.name <= f"dt={day}")
    for folder in folders[-days:]:
        table = pq.read_table(folder / "part-0.parquet", columns=COLUMNS)
        pq.write_table(table, out / "training" / f"{folder.name}.parquet", compression="zstd", row_group_size=ROWS)
    evaluation = pq.read_table(workspace / "features" / "evaluation" / f"dt={day}" / "part-0.parquet")
    pq.write_table(evaluation, out / "evaluation.parquet", compression="zstd", row_group_size=ROWS)
    shutil.copytree(workspace / "days" / day / "tokenize", out / "tokenizer", dirs_exist_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy a workspace's files for the training benchmarks.")
    parser.add_argument("--workspace", type=Path, required=True, help="folder of a source, as var/kuairand-pure")
    parser.add_argument("--day", required=True, help="last day trained on, as 2022-05-05")
    parser.add_argument("--days", type=int, default=7, help="how many days up to it (7)")
    parser.add_argument("--out", type=Path, required=True)
    prepare(**vars(parser.parse_args()))
