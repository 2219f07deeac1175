"""A prepared folder of users with full histories at the published context, to feed step_speed through the real loader.

    python -m benchmarks.training.full_histories --out prepared/full --users 10240

Random raw events (20 + 256 + 2000 a user), one positive impression each, and a tokenizer of random codes over the
catalogue. It is the work of reading, encoding and batching that is real, not what there is to learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from models.onerec.features import EVENT_FIELDS
from models.tokenizer.trie import Trie

LENGTHS = {"short": 20, "positive": 256, "lifelong": 2000}
NOW_MS, LONG_VIEW = 1_700_000_000_000, 2
LIMITS = {"author_id": 1 << 30, "tag": 500, "play_ms": 60_000, "duration_ms": 60_000, "label": 256}


def lists(values: np.ndarray) -> pa.Array:
    """[B, L] -> B lists of L."""
    rows, length = values.shape
    return pa.LargeListArray.from_arrays(np.arange(0, rows * length + 1, length), values.ravel())


def users(
    rng: np.random.Generator, item_ids: np.ndarray, rows: int, first: int, static: int
) -> dict[str, np.ndarray | pa.Array]:
    """Columns of a training set."""
    out = {
        "user_id": np.arange(first, first + rows),
        "event_timestamp": pa.array(np.full(rows, NOW_MS), pa.timestamp("ms", "UTC")),
    }
    out["static_codes"] = lists(rng.integers(0, 8192, (rows, static)))
    for name, length in LENGTHS.items():
        for field in EVENT_FIELDS:
            if field == "item_id":
                values = item_ids[rng.integers(0, len(item_ids), (rows, length))]
            elif field == "time_s":
                values = NOW_MS // 1000 - rng.integers(1, 1 << 25, (rows, length))
            else:
                values = rng.integers(0, LIMITS[field], (rows, length))
            out[f"{name}_{field}"] = lists(values)
    out["item_id"] = lists(item_ids[rng.integers(0, len(item_ids), (rows, 1))])
    out["label"] = lists(np.full((rows, 1), LONG_VIEW))
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--users", type=int, default=10_240)
    p.add_argument("--rows", type=int, default=2560, help="users a row group, one file each (2560)")
    p.add_argument("--items", type=int, default=2_000_000)
    p.add_argument("--static", type=int, default=26, help="static features (26)")
    args = p.parse_args()
    rng = np.random.default_rng(0)
    folder = args.out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (args.out / "training").mkdir(exist_ok=True)
    key = np.sort(_distinct(rng, args.items))
    sid = np.stack([key // 8192**2, key // 8192 % 8192, key % 8192], 1)
    item_ids = rng.permutation(args.items).astype(np.int64) * 3
    columns = {"item_id": item_ids, **{f"c{i}": sid[:, i] for i in range(3)}}
    pq.write_table(pa.table(columns), folder / "sid_table.parquet")
    Trie.build(sid, 8192).save(folder / "trie.safetensors")
    save_file({f"codebook_{i}": np.zeros((8192, 1), np.float32) for i in range(3)}, folder / "codebooks.safetensors")
    for number, first in enumerate(range(0, args.users, args.rows)):
        table = pa.table(users(rng, item_ids, min(args.rows, args.users - first), first, args.static))
        pq.write_table(table, args.out / "training" / f"part-{number:03}.parquet", compression="zstd")


def _distinct(rng: np.random.Generator, count: int) -> np.ndarray:
    """Different numbers below 8192^3."""
    found = np.unique(rng.integers(0, 8192**3, count + count // 8 + 64))
    return rng.permutation(found)[:count]


if __name__ == "__main__":
    main()
