"""Swing's speed and memory: interactions per second from 0.1 to 50 million interactions.

python -m benchmarks.tokenizer.swing --millions 0.1 1 10 --processes 2
python -m benchmarks.tokenizer.swing --millions 50 --processes 2 --memory 4GB

Interactions are drawn here: log-normal activity of users (median 25 items), Zipf-like popularity (exponent 0.9), one
item for 200 interactions. Caps as published (users of 10 to 1,000 items, 1,000 users an item, 100 neighbours). Each
size is a process of its own; memory is the peak of it and its workers together, sampled. Time counts everything:
reading Parquet, SQL, scoring, the result in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import REPOSITORY, commit, hardware
from models.tokenizer.swing import swing
from models.tokenizer.swing_scores import SwingConfig


def write_log(path: Path, interactions: int, seed: int = 0) -> None:
    """A log of about so many distinct interactions, row groups of 1 M."""
    rng = np.random.default_rng(seed)
    items = max(100, interactions // 200)
    popularity = np.cumsum(np.arange(1, items + 1, dtype=np.float64) ** -0.9)
    popularity /= popularity[-1]
    schema = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64())])
    user, written = 0, 0
    with pq.ParquetWriter(path, schema) as out:
        while written < interactions:
            size = np.clip(rng.lognormal(np.log(25), 1.0, 20_000).astype(np.int64), 1, 1000)
            size = size[: np.searchsorted(np.cumsum(size), interactions - written) + 1]
            item = np.searchsorted(popularity, rng.random(int(size.sum())))
            users = np.repeat(np.arange(user, user + len(size)), size)
            out.write_table(pa.table([users, item * 3 + 1], schema=schema))
            user, written = user + len(size), written + len(item)


def one(path: Path, processes: int, memory: str) -> dict:
    """Time and peak memory of one log, in this process and its children."""
    peak, stop, me = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not stop.wait(0.2):
            family = [me, *me.children(recursive=True)]
            used = 0
            for process in family:
                try:
                    used += process.memory_full_info().pss  # shared pages count once
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], used)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    begun, cpu = time.monotonic(), os.times()
    found = swing(str(path), SwingConfig(), processes=processes, memory=memory)
    seconds, after = time.monotonic() - begun, os.times()
    stop.set()
    thread.join()
    used = sum(after[:4]) - sum(cpu[:4])
    return {"seconds": seconds, "cpu_seconds": used, "peak_gib": peak[0] / 2**30, "neighbours": len(found)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--millions", type=float, nargs="+", default=[0.1, 1, 10])
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--memory", default="2GB", help="DuckDB's limit (2GB); it spills to disk beyond")
    p.add_argument("--scratch", type=Path, help="folder for the logs (a temporary one)")
    p.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    p.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.processes, args.memory)))
        return
    lines = [
        "| interactions | time s | interactions/s | CPU s | interactions/CPU s | peak memory GiB | neighbours found |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        for millions in args.millions:
            path = Path(folder) / "log.parquet"
            write_log(path, int(millions * 1e6))
            command = [sys.executable, "-m", "benchmarks.tokenizer.swing", "--one", str(path)]
            command += ["--processes", str(args.processes), "--memory", args.memory]
            environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{millions} M interactions failed:\n{done.stderr[-3000:]}")
            r = json.loads(done.stdout.strip().splitlines()[-1])
            n = pq.read_metadata(path).num_rows
            lines.append(
                f"| {n:,} | {r['seconds']:.1f} | {n / r['seconds']:,.0f} | {r['cpu_seconds']:.1f} | "
                f"{n / r['cpu_seconds']:,.0f} | {r['peak_gib']:.2f} | {r['neighbours']:,} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    about = {
        "command": " ".join(["python", "-m", "benchmarks.tokenizer.swing", *sys.argv[1:]]),
        "hardware": hardware("cpu"),
        "load when it ended (1 minute)": f"{os.getloadavg()[0]:.1f}",
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    page = "# Swing\n\n" + "\n".join(lines) + "\n\n" + "\n".join(f"- {k}: {v}" for k, v in about.items()) + "\n"
    args.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
