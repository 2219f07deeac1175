"""The simulator: writes contract tables of made-up users and items, and the truth behind them. No number is real.

    python -m datasets.simulator --out simulated --days 8 --end 2025-01-08 --seed 7

The folder is in the layout of `datasets/adapters/contract_parquet.py`, with a snapshot of items and users a day, and:

    truth/tastes.parquet     user_id, dt, taste list<double>: what each user likes on each day
    truth/items.parquet      item_id, vector list<double>, quality double
    simulation.json          the arguments, and the rates that came out

The model is described in `datasets/world.py`; `true_preference` reads the truth back, to measure alignment against it.
The same arguments give the same bytes. The folder appears whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets import world
from datasets.cleaning import day_bounds
from datasets.contract import IMPRESSIONS, ITEMS, LABELS, USERS
from datasets.errors import DataError
from datasets.partitions import replace_folder

TIMEZONE = "Asia/Shanghai"
RECORD = "simulation.json"


def simulate(
    out: Path,
    *,
    days: int = 8,
    end: date,
    users: int = 2000,
    items: int = 1000,
    impressions: int = 60_000,
    seed: int = 7,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write `days` log days, the last being `end`, and return the arguments and the measured rates.

    impressions: how many in all, about. Replaces an earlier simulation at `out`; DataError if something else is there.
    """
    if min(days, users, impressions) < 1 or items < 2 * world.POSITIONS:
        raise DataError(
            f"cannot simulate {days} days of {users} users, {items} items and {impressions} impressions: "
            f"give at least one of each, and {2 * world.POSITIONS} items"
        )
    if out.exists() and not (out / RECORD).exists():
        raise DataError(f"{out} exists and is no simulation ({RECORD} is missing): name another folder, or remove it")
    staged = out.parent / f".{out.name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        record = _write(staged, days, end, users, items, impressions, seed, progress)
        replace_folder(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return record


def true_preference(out: Path, day: date) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The truth of a day: user ids [U], item ids [I] and preferences [U, I] (higher is better)."""
    table = pq.read_table(out / "truth" / "tastes.parquet", filters=[("dt", "==", day)])
    if not table.num_rows:
        raise DataError(f"{out} simulates no {day}: its days are in {out / RECORD}")
    items = pq.read_table(out / "truth" / "items.parquet")
    taste_UD, vectors_ID = (np.array(c.to_pylist()) for c in (table["taste"], items["vector"]))
    scores_UI = world.preference(taste_UD, vectors_ID, items["quality"].to_numpy())
    return table["user_id"].to_numpy(), items["item_id"].to_numpy(), scores_UI


def _write(
    out: Path,
    days: int,
    end: date,
    users: int,
    items: int,
    impressions: int,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    first = end - timedelta(days=days - 1)
    centres_TD = world.draw_centres(rng)
    catalogue = world.draw_items(rng, centres_TD, items, days)
    people = world.draw_users(rng, centres_TD, users, days, impressions)
    seen_UI = np.zeros((users, items), dtype=bool)
    rows, sums = 0, np.zeros(len(LABELS))
    all_items = _items_table(catalogue, first)
    people_table = pa.table({"user_id": _ids(users), **people.static})
    people_table = people_table.cast(pa.schema([*USERS, *list(people_table.schema)[1:]]))
    for number in range(days):
        day = first + timedelta(days=number)
        columns = world.draw_day(rng, catalogue, people, seen_UI, number)
        rows += len(columns["user"])
        sums += [columns[name].sum() for name in LABELS]
        _put(out / "impressions" / f"dt={day}", _impressions_table(columns, day))
        # An item is in the snapshot of its upload day; the users are all there from the start.
        _put(out / "items" / f"dt={day}", all_items.filter(pa.array(catalogue.uploaded_I < number + 1)))
        _put(out / "users" / f"dt={day}", people_table)
        progress(f"simulated {day}: {len(columns['user']):,} impressions")
    vectors = _lists(catalogue.vectors_ID)
    _put(out / "truth", pa.table({"item_id": _ids(items), "vector": vectors, "quality": catalogue.quality_I}), "items")
    _put(out / "truth", _tastes_table(people.tastes_dUD, first), "tastes")
    (out / "source.json").write_text(json.dumps({"timezone": TIMEZONE}) + "\n", encoding="utf-8")
    record = {
        "simulated": True,
        "arguments": {
            "days": days,
            "end": end.isoformat(),
            "users": users,
            "items": items,
            "impressions": impressions,
            "seed": seed,
        },
        "days": [(first + timedelta(days=number)).isoformat() for number in range(days)],
        "impressions": rows,
        "rates": {name: round(float(total) / max(rows, 1), 5) for name, total in zip(LABELS, sums)},
    }
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _impressions_table(columns: dict[str, np.ndarray], day: date) -> pa.Table:
    start_ms = int(day_bounds(day, TIMEZONE)[0].replace(tzinfo=UTC).timestamp() * 1000)
    data: dict[str, Any] = {name: columns[name] for name in IMPRESSIONS.names if name in columns}
    data |= {
        "user_id": columns["user"] + 1,
        "item_id": columns["item"] + 1,
        "event_time": pa.array(start_ms + columns["time_ms"], pa.timestamp("ms", tz="UTC")),
        "request_id": [f"{day}-{number}" for number in columns["request"]],
        "surface": ["feed"] * len(columns["user"]),
    }
    return pa.table([pa.array(data[field.name]).cast(field.type) for field in IMPRESSIONS], schema=IMPRESSIONS)


def _items_table(catalogue: world.Items, first: date) -> pa.Table:
    start = day_bounds(first, TIMEZONE)[0].replace(tzinfo=UTC)
    data: dict[str, Any] = {
        "item_id": _ids(len(catalogue.captions)),
        "author_id": catalogue.authors_I,
        "upload_time": [start + timedelta(seconds=int(after * 86_400)) for after in catalogue.uploaded_I],
        "duration_ms": catalogue.duration_ms_I,
        "tags": [[int(t) for t in topics if t >= 0] for topics in catalogue.topics_I2],
        "caption": catalogue.captions,
    }
    missing = len(catalogue.captions)
    return pa.table(
        [pa.array(data[f.name], f.type) if f.name in data else pa.nulls(missing, f.type) for f in ITEMS], schema=ITEMS
    )


def _tastes_table(tastes_dUD: np.ndarray, first: date) -> pa.Table:
    days, users, _ = tastes_dUD.shape
    dates = [first + timedelta(days=number) for number in range(days)]
    dt = pa.array([d for d in dates for _ in range(users)], pa.date32())
    return pa.table({"user_id": np.tile(_ids(users), days), "dt": dt, "taste": _lists(np.concatenate(tastes_dUD))})


def _ids(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.int64)


def _lists(x_ND: np.ndarray) -> pa.Array:
    offsets = np.arange(0, x_ND.size + 1, x_ND.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, x_ND.ravel())


def _put(folder: Path, table: pa.Table, name: str = "part-0") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def main(arguments: list[str] | None = None) -> None:
    """Entry of `python -m datasets.simulator`."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.simulator",
        description="Write simulated logs in the contract layout, with the truth behind them. No number is real.",
        epilog="example: python -m datasets.simulator --out simulated --days 8 --end 2025-01-08 --seed 7",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an earlier simulation is replaced")
    parser.add_argument("--end", type=date.fromisoformat, required=True, help="last log day, as 2025-01-08")
    parser.add_argument("--days", type=int, default=8, help="number of log days (8)")
    parser.add_argument("--users", type=int, default=2000, help="number of users (2000)")
    parser.add_argument("--items", type=int, default=1000, help="number of items, old and new (1000)")
    parser.add_argument("--impressions", type=int, default=60_000, help="about how many in all (60000)")
    parser.add_argument("--seed", type=int, default=7, help="same seed, same bytes (7)")
    try:
        record = simulate(**vars(parser.parse_args(arguments)))
    except DataError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
