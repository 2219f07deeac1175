"""What the size of a training set's row groups costs: seconds to write, bytes, and the memory of reading one group.

    python -m benchmarks.features.row_groups --out benchmarks/features/row_groups.md

Made rows with the shape of a training set's widest column: lists of 0 to 2000 int64 item numbers of a skewed
catalogue. Each size is read in a process of its own, one group at a time, as training does; memory is the peak resident
set over what the imports hold.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.features.point_in_time import _peak_mib
from benchmarks.machine import commit, processor
from datasets.partitions import PART, write_partition

SIZES = (1024, 4096, 16_384, 131_072)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        before, start = _peak_mib(), time.perf_counter()
        with pq.ParquetFile(args.read) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
        print(f"{time.perf_counter() - start:.2f} {_peak_mib() - before:.0f}")
        return
    rng = np.random.default_rng(1)
    ends = np.concatenate([[0], np.cumsum((2000 * rng.random(args.rows) ** 4).astype(np.int32))]).astype(np.int32)
    values = pa.array((100_000 * rng.random(ends[-1]) ** 3).astype(np.int64))
    table = pa.table({"lifelong_item_id": pa.ListArray.from_arrays(pa.array(ends), values)})
    lines = [f"# Row groups of a training set: {args.rows:,} rows, {ends[-1] / args.rows:.0f} values each", ""]
    lines += ["| rows a group | s to write | MiB | s to read | peak MiB of reading |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as work:
        for rows in SIZES:
            start = time.perf_counter()
            write_partition(Path(work) / str(rows), table, group_rows=rows)
            wrote, file = time.perf_counter() - start, Path(work) / str(rows) / PART
            command = [sys.executable, "-m", "benchmarks.features.row_groups", "--read", str(file)]
            read, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            lines.append(f"| {rows:,} | {wrote:.2f} | {file.stat().st_size / 2**20:.1f} | {read} | {peak} |")
            print(lines[-1], flush=True)
    load = f"load {os.getloadavg()[0]:.1f}"
    lines += ["", f"{processor()}, {os.cpu_count()} cores; {load}; commit {commit()}; {dt.date.today()};"]
    lines += ["`python -m benchmarks.features.row_groups`"]
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
