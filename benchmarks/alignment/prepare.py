"""Copy what the benchmarks read of a day's workspace into one folder, to run them where no pipeline is installed.

    python -m benchmarks.alignment.prepare --workspace var/kuairand-pure --day 2022-05-05 --out prepared/kuairand
    python -m benchmarks.alignment.prepare --workspace var/simulated --day 2025-01-08 --out prepared/sim --truth DIR

The folder holds training.parquet (the newest day), evaluation.parquet (the day after), items.parquet, tokenizer/,
model/ (pre-trained), reward/ (with V1's session-wise reward, trained here on the newest day), and truth/ (the
simulator's, of its last day). Only what the benchmarks use is kept: training rows with a positive, evaluation rows with
a positive that the user had not seen (a fixed random `--users` of them), events that fit into the model's pathways.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.onerec.config import OneRecConfig
from models.onerec.features import EVENT_FIELDS, POSITIVE_MASK
from models.reward.session import train_session
from models.training.data import CONTEXT_COLUMNS, PATHWAYS

STEPS = {"tokenizer": "tokenize", "model": "pretrain", "reward": "reward"}
COLUMNS = [*CONTEXT_COLUMNS, "seen_item_id", "item_id", "label", "label_known", "play_ms", "duration_ms"]
ITEM_COLUMNS = ["item_id", "author_id", "tags", "upload_time"]


def prepare(workspace: Path, day: str, out: Path, truth: Path | None, users: int = 2000, seed: int = 1) -> None:
    """Raises FileNotFoundError naming the first file that the workspace lacks."""
    out.mkdir(parents=True, exist_ok=True)
    day_file = f"dt={day}/part-0.parquet"
    training = pq.read_table(workspace / "features/training" / day_file, columns=COLUMNS)
    evaluation = pq.read_table(workspace / "features/evaluation" / day_file, columns=COLUMNS)
    training = training.filter(pa.array([len(ids) > 0 for ids in positives(training)]))
    seen = evaluation["seen_item_id"].to_pylist()
    unseen = [len(np.setdiff1d(ids, s or [])) > 0 for ids, s in zip(positives(evaluation), seen)]
    evaluation = evaluation.filter(pa.array(unseen))
    chosen = np.sort(np.random.default_rng(0).permutation(len(evaluation))[:users])
    model = OneRecConfig.load(workspace / "days" / day / STEPS["model"] / "config.json")
    write(newest(training, model), out / "training.parquet")
    write(newest(evaluation.take(pa.array(chosen)), model), out / "evaluation.parquet")
    write(pq.read_table(workspace / "lake/items" / day_file, columns=ITEM_COLUMNS), out / "items.parquet")
    for name, step in STEPS.items():
        shutil.copytree(workspace / "days" / day / step, out / name, dirs_exist_ok=True)
    train_session(
        training_sets=[workspace / "features/training" / day_file],
        tokenizer=out / "tokenizer",
        reward=out / "reward",
        out=out / "reward",
        seed=seed,
    )
    if truth is not None:
        (out / "truth").mkdir(exist_ok=True)
        tastes = pq.read_table(truth / "tastes.parquet")
        write(tastes.filter(pc.equal(tastes["dt"], pc.max(tastes["dt"]))), out / "truth" / "tastes.parquet")
        shutil.copyfile(truth / "items.parquet", out / "truth" / "items.parquet")


def positives(table: pa.Table) -> list[np.ndarray]:
    """Ids of the items that each row's user was shown and liked."""
    rows = zip(table["item_id"].to_pylist(), table["label"].to_pylist())
    return [np.array(i, np.int64)[(np.array(y, np.int64) & POSITIVE_MASK) > 0] for i, y in rows]


def newest(table: pa.Table, config: OneRecConfig) -> pa.Table:
    """Each pathway's last events, as many as the model reads."""
    for name in PATHWAYS:
        length = getattr(config, f"{name}_len")
        for column in (f"{name}_{field}" for field in EVENT_FIELDS):
            field = table.schema.field(column)
            lists = pa.array([(values or [])[-length:] for values in table[column].to_pylist()], field.type)
            table = table.set_column(table.schema.get_field_index(column), field, lists)
    return table


def write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", compression_level=19)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy a day's files for the alignment benchmarks.")
    parser.add_argument("--workspace", type=Path, required=True, help="folder of a source, as var/kuairand-pure")
    parser.add_argument("--day", required=True, help="day that was trained, as 2022-05-05")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--truth", type=Path, help="the simulator's truth folder")
    parser.add_argument("--users", type=int, default=2000, help="evaluation users that are kept (2000)")
    parser.add_argument("--seed", type=int, default=1, help="of the session-wise reward (1)")
    prepare(**vars(parser.parse_args()))
