"""How long the ingest of one day takes out of a log as large as KuaiRand-27K's, and in how much memory.

    python -m benchmarks.datasets.ingest --millions 3 10 30 --memory-mib 512

The log is made up in the layout of KuaiRand-27K: four CSV parts over 31 days (8 April to 8 May 2022), 27,285 users,
items by a power law, the official columns; 27K itself has 322 million rows (`--millions 322`: about 25 GB of CSV).
What is timed is what the daily run calls for one day: the whole log is streamed, the day and the day after it, for
evaluation, are staged, judged by the rules and written. Each size has a process of its own; "peak MiB" is its resident
memory, "before" what Python and its libraries held before it began. Writes benchmarks/datasets/ingest.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

from benchmarks.machine import commit, processor
from tests.datasets.tiny_kuairand import LOG_COLUMNS, tiny_files

PARTS = {"4_08_to_4_21_27k_part1": (0, 7), "4_08_to_4_21_27k_part2": (7, 14)} | {
    "4_22_to_5_08_27k_part1": (14, 23),
    "4_22_to_5_08_27k_part2": (23, 31),
}
USERS, DAY = 27_285, "2022-05-05"
TABLE = Path(__file__).with_suffix(".md")
CHILD = """
import json, sys, time
from datetime import date
from pathlib import Path
import duckdb, pyarrow.parquet
from datasets.ingest import ingest

def peak():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

before, wall, cpu = peak(), time.perf_counter(), time.process_time()
found = ingest(source=Path(sys.argv[1]), lake=Path(sys.argv[2]), day=date.fromisoformat(sys.argv[3]), bootstrap=False,
               progress=lambda text: None, memory_mib=int(sys.argv[4]))
print(json.dumps({"before": before, "peak": peak(), "seconds": time.perf_counter() - wall,
                  "cpu": time.process_time() - cpu, "rows": found["counts"]["rows_read"]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[3, 10, 30], help="rows of the log")
    parser.add_argument("--memory-mib", type=int, default=512, help="of DuckDB")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    lines = []
    for millions in args.millions:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            source, lake = Path(folder) / "source", Path(folder) / "lake"
            size = write_log(source, millions * 1_000_000)
            command = [sys.executable, "-c", CHILD, str(source), str(lake), DAY, str(args.memory_mib)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout)
        lines.append(
            f"| {millions} M | {size:.2f} | {found['rows']:,} | {found['seconds']:.1f} | {found['cpu']:.1f} "
            f"| {found['cpu'] / millions:.2f} | {found['before']:.0f} | {found['peak']:.0f} |"
        )
        print(lines[-1], flush=True)
    head = [
        "# Ingest of one day out of a log in KuaiRand-27K's layout",
        "",
        "| rows | GiB of CSV | rows of the day | seconds | CPU seconds | CPU s a million | before | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    sizes = " ".join(map(str, args.millions))
    tail = [
        "",
        f"- command: python -m benchmarks.datasets.ingest --millions {sizes} --memory-mib {args.memory_mib}",
        f"- hardware: {processor()}, {os.cpu_count()} cores; load when it ended {os.getloadavg()[1]:.1f}",
        f"- commit {commit()}, {dt.date.today()}",
    ]
    args.out.write_text("\n".join([*head, *lines, *tail]) + "\n")


def write_log(source: Path, rows: int) -> float:
    """A folder of the official files; returns the size of the log in GiB."""
    tiny_files().write(source)
    for file in source.glob("log_standard_*"):
        file.unlink()
    items, each = rows // 10, rows // 31
    labels = {"is_click": 44, "long_view": 31, "is_like": 2, "is_follow": 1, "is_comment": 1, "is_forward": 1}
    values = dict.fromkeys(LOG_COLUMNS, "0") | {
        "user_id": f"hash(n, d) % {USERS}",
        "video_id": f"CAST(floor({items} * pow((hash(n, d, 'v') % 1000003) / 1000003.0, 2)) AS BIGINT)",
        "date": "strftime(DATE '2022-04-08' + CAST(d AS INTEGER), '%Y%m%d')",
        # The log day is Shanghai's, eight hours before UTC's.
        "time_ms": f"epoch_ms(TIMESTAMP '2022-04-07 16:00:00') + (d * 86400 + n * 86399 // {each}) * 1000",
        "play_time_ms": "hash(n, 'p') % 60000",
        "duration_ms": "5000 + hash(n, 'd') % 55000",
        "tab": "1",
        **{name: f"CAST(hash(n, d, '{name}') % 100 < {rate} AS TINYINT)" for name, rate in labels.items()},
    }
    columns = ", ".join(f"{value} AS {name}" for name, value in values.items())
    with duckdb.connect(config={"memory_limit": "1GB", "threads": 1}) as con:
        for part, (low, high) in PARTS.items():
            days = f"range({low}, {high}) a(d), range({each}) b(n)"
            con.execute(f"COPY (SELECT {columns} FROM {days}) TO '{source}/log_standard_{part}.csv' (HEADER)")
    return sum(f.stat().st_size for f in source.glob("log_standard_*")) / 2**30


if __name__ == "__main__":
    main()
