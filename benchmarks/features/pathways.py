"""Pathways of one day at scale: time, memory and disk for 1, 10 and 100 million impressions of up to 1 million users.

    python -m benchmarks.features.pathways --impressions 1 10 100 --memory 10GB --out benchmarks/features/pathways.md

The log is made by DuckDB in the lake's layout: 30 days, users (100 impressions each on average, the busiest far more)
and items by power laws, the contract's columns. What is timed is what the daily run calls: the log is read, the views
and the labels of the last day are written, and the state of lifelong; every user is shown something on that day, so
every one gets new rows, and nobody has an earlier state, so all are clustered: the most work that a day can be.
Each size has a process of its own. "GiB" is its peak resident memory, "spilled" the most that lay on disk meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.machine import commit, processor
from datasets import contract
from datasets.partitions import MANIFEST, partition_path, write_partition

DAYS = [datetime.date(2026, 1, 1) + datetime.timedelta(days=i) for i in range(30)]
ITEMS, PER_USER = 200_000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=float, nargs="+", default=[1, 10, 100], help="millions")
    parser.add_argument("--memory", default="10GB", help="DuckDB's limit; Arrow and PyTorch need about 3 GiB beside it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the log and the features go (default: a temporary folder)")
    parser.add_argument("--logs", type=Path, help="keep the logs here, one folder a size, and use those that are there")
    parser.add_argument("--out", type=Path, help="Markdown table")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)  # the process of one size: lake, folder
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_day(*args.one, args.memory, args.threads)))
        return
    lines = [
        *heading(args),
        "| impressions | users | seconds | s a million | CPU s | GiB | spilled GiB | written GiB |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for millions in args.impressions:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            lake = (args.logs or Path(folder)) / f"{millions:g}"
            if not lake.exists():
                write_log(lake, int(millions * 1e6), args.memory, args.threads)
            command = [sys.executable, "-m", "benchmarks.features.pathways", "--one", str(lake), folder]
            limits = ["--memory", args.memory, "--threads", str(args.threads)]
            done = subprocess.run([*command, *limits], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
        lines.append(
            f"| {millions:g} M | {found['users']:,} | {found['seconds']:.1f} | {found['seconds'] / millions:.2f} "
            f"| {found['cpu']:.1f} | {found['gib']:.2f} | {found['spilled']:.2f} | {found['written']:.2f} |"
        )
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def write_log(lake: Path, impressions: int, memory: str, threads: int) -> None:
    """Day partitions of impressions, sorted by time, and the items and users of the last day."""
    users, each = max(1, impressions // PER_USER), impressions // len(DAYS)
    labels = ", ".join(
        f"CAST(hash(i, '{name}', d) % 1000 < {int(1000 * rate)} AS TINYINT) AS {name}"
        for name, rate in zip(contract.LABELS, (0.44, 0.31, 0.02, 0.01, 0.01, 0.01, 0.01, 0.02))
    )
    with duckdb.connect(config={"memory_limit": memory, "threads": threads}) as con:
        con.execute("SET TimeZone = 'UTC'")
        for number, day in enumerate(DAYS):
            path = partition_path(lake / "impressions", day)
            path.mkdir(parents=True)
            # The last day shows everybody something: a third of it goes round the users, the rest by a power law.
            draw = f"(hash(i, 'u', {number}) % 1000003) / 1000003.0"
            who = f"CAST(floor({users} * pow({draw}, 1.5)) AS BIGINT)"
            if number == len(DAYS) - 1:
                who = f"CASE WHEN i < {users} THEN i ELSE {who} END"
            con.execute(
                f"""COPY (SELECT {who} AS user_id,
                CAST(floor({ITEMS} * pow((hash(i, 'v', {number}) % 1000003) / 1000003.0, 2)) AS BIGINT) AS item_id,
                make_timestamptz({day.year}, {day.month}, {day.day}, 0, 0, 0, 'UTC')
                    + to_milliseconds(CAST(floor(i * 86399000.0 / {each}) AS BIGINT)) AS event_time,
                CAST(NULL AS VARCHAR) AS request_id, CAST(NULL AS INTEGER) AS position,
                CAST(hash(i, 'p', {number}) % 60000 AS BIGINT) AS play_time_ms,
                CAST(5000 + hash(i, 'd', {number}) % 55000 AS BIGINT) AS duration_ms,
                {labels.replace(", d)", f", {number})")}, CAST(NULL AS VARCHAR) AS surface
                FROM range({each}) t(i)) TO '{path}/part-0.parquet' (FORMAT parquet, COMPRESSION zstd)"""
            )
            (path / MANIFEST).write_text(json.dumps({"rows": each}))
    item = pa.array(range(ITEMS), pa.int64())
    facts = {"item_id": item, "author_id": [i % 5000 for i in range(ITEMS)], "tags": [[i % 300] for i in range(ITEMS)]}
    columns = [pa.array(facts[f.name], f.type) if f.name in facts else pa.nulls(ITEMS, f.type) for f in contract.ITEMS]
    write_partition(partition_path(lake / "items", DAYS[-1]), pa.table(columns, schema=contract.ITEMS))
    user = pa.array(range(users), pa.int64())
    static = {f"c{j}": [i * (j + 1) % 7 for i in range(users)] for j in range(10)}
    write_partition(partition_path(lake / "users", DAYS[-1]), pa.table({"user_id": user, **static}))


def run_day(lake: Path, folder: Path, memory: str, threads: int) -> dict[str, float]:
    """Views and labels of the last day, into `folder`."""
    from feature_repo.engine import duckdb_engine
    from feature_repo.pathways import Pathways

    features, spill = folder / "features", folder / "spill"
    spill.mkdir()
    largest, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            files = [*spill.rglob("*"), *features.glob(".spill-*/*")]
            largest[0] = max(largest[0], sum(f.stat().st_size for f in files if f.is_file()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    engine = duckdb_engine(memory=memory, threads=threads, spill=spill)
    try:
        with Pathways(lake=lake, features=features, day=DAYS[-1], since=DAYS[-1], engine=engine) as pathways:
            pathways.write_views(DAYS[-1])
            begin = pathways.end_of(DAYS[-2])
            pathways.write_labels("labels", DAYS[-1], [(begin, begin, None, DAYS[-1])])
    finally:
        over.set()
        watcher.join()
    users = json.loads((partition_path(features / "user_seen", DAYS[-1]) / MANIFEST).read_text())["rows"]
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "gib": peak_gib(),
        "users": users,
        "spilled": largest[0] / 2**30,
        "written": sum(f.stat().st_size for f in features.rglob("*.parquet")) / 2**30,
    }


def peak_gib() -> float:
    """Not getrusage: its peak is that of the parent at the fork, if that was larger."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20


def heading(args: argparse.Namespace) -> list[str]:
    """What ran where."""
    sizes = " ".join(f"{m:g}" for m in args.impressions)
    command = f"python -m benchmarks.features.pathways --impressions {sizes} --memory {args.memory}"
    return [
        "# Pathways of one day",
        "",
        f"{processor()}, {args.threads} threads; load before {os.getloadavg()[0]:.1f}; commit {commit()};",
        f"{datetime.date.today()}; `{command}`.",
        "",
    ]


if __name__ == "__main__":
    main()
