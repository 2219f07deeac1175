"""How long the suites of a day take, and in how much memory, on N made-up impressions with a trailing week.

    python -m benchmarks.data_quality.validate_speed --rows 1000000 10000000 --out validate_speed.md

Each size is validated in a process of its own, on two cores, Data Docs included. The lake: one day of N impressions of
N / 10 users and N / 20 items, and the same file seven times more as the trailing week. Aim: 10 million in under a
minute and under 4 GiB on 2 cores. CPU seconds stand beside the clock's, for machines that do other work as well.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

from benchmarks.machine import commit, hardware
from datasets.contract import LABELS
from datasets.partitions import MANIFEST, PART, sha256

DAY = dt.date(2025, 1, 8)
TRAILING = 7
RATES = (0.44, 0.31, 0.017, 0.0013, 0.0025, 0.0009, 0.0008, 0.019)  # of KuaiRand
CHILD = """
import json, os, resource, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from pathlib import Path
begun = time.monotonic()
from data_quality.checkpoint import validate
ready = time.monotonic()
found = validate(lake=Path(sys.argv[1]), day=sys.argv[2], days=[sys.argv[2]], out=Path(sys.argv[3]),
                 progress=lambda text: None)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"import_s": ready - begun, "seconds": time.monotonic() - ready,
                  "cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024,
                  "checks": len(found["results"]),
                  "failed": [r["rule"] for r in found["results"] if not r["success"]]}))
"""


def make_lake(lake: Path, rows: int) -> float:
    """Write the lake; return the size of the day's file in MiB."""
    users, items = max(rows // 10, 10), max(rows // 20, 10)
    labels = ", ".join(
        f"CAST(random() < {rate} AS TINYINT) AS {name}" for name, rate in zip(LABELS, RATES, strict=True)
    )
    contract = {
        "impressions": f"""SELECT * FROM (SELECT CAST(random() * {users - 1} AS BIGINT) AS user_id,
            CAST(random() * {items - 1} AS BIGINT) AS item_id,
            CAST(epoch_ms(epoch_ms(TIMESTAMP '{DAY}') + CAST(random() * 86399999 AS BIGINT)) AS TIMESTAMP_MS)
                AT TIME ZONE 'UTC' AS event_time, CAST(NULL AS VARCHAR) AS request_id,
            CAST(NULL AS INTEGER) AS position, CAST(random() * 40000 AS BIGINT) AS play_time_ms,
            CAST(1000 + random() * 60000 AS BIGINT) AS duration_ms, {labels}, CAST(i % 5 AS VARCHAR) AS surface
            FROM range({rows}) t(i)) ORDER BY event_time, user_id, item_id""",
        "items": f"""SELECT i AS item_id, i % 1000 AS author_id, TIMESTAMPTZ '2025-01-01 00:00:00+00' AS upload_time,
            CAST(30000 AS BIGINT) AS duration_ms, [CAST(i % 50 AS INTEGER)] AS tags, 'item ' || i AS caption,
            CAST(NULL AS VARCHAR) AS asr, CAST(NULL AS VARCHAR) AS ocr, CAST(NULL AS VARCHAR) AS cover_uri,
            CAST(NULL AS VARCHAR[]) AS frame_uris, CAST(NULL AS FLOAT[]) AS content_embedding
            FROM range({items}) t(i) ORDER BY i""",
        "users": f"SELECT i AS user_id, 'c' || i % 7 AS country FROM range({users}) t(i) ORDER BY i",
    }
    with duckdb.connect(config={"memory_limit": "3GB", "temp_directory": str(lake.parent / "spill")}) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SELECT setseed(0.5)").fetchall()
        for table, query in contract.items():
            _put(con, lake / table / f"dt={DAY}", query, {"impressions": rows, "items": items, "users": users}[table])
    for back in range(1, TRAILING + 1):
        folder = lake / "impressions" / f"dt={DAY - dt.timedelta(days=back)}"
        folder.mkdir()
        for name in (PART, MANIFEST):
            os.link(lake / "impressions" / f"dt={DAY}" / name, folder / name)
    return (lake / "impressions" / f"dt={DAY}" / PART).stat().st_size / 2**20


def _put(con: duckdb.DuckDBPyConnection, path: Path, query: str, rows: int) -> None:
    """A partition as the ingest writes it, but by DuckDB; Arrow then gives the times their unit."""
    import pyarrow.parquet as pq

    from datasets.contract import IMPRESSIONS, ITEMS

    path.mkdir(parents=True)
    schema = {"impressions": IMPRESSIONS, "items": ITEMS}.get(path.parent.name)
    reader = con.sql(query).to_arrow_reader(1 << 17)
    with pq.ParquetWriter(path / PART, schema or reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.cast(schema) if schema else batch)
    digest = sha256(path / PART)
    counts = {"rows_read": rows, "duplicates": 0}
    manifest = {"rows": rows, "digest": digest, "files": [], "counts": counts, "timezone": "UTC"}
    (path / MANIFEST).write_text(json.dumps(manifest))


def measure(rows: int, scratch: Path) -> dict:
    """Make a lake of this size, validate it in a fresh process, and return what the process says of itself."""
    folder = Path(tempfile.mkdtemp(prefix=f"validate-{rows}-", dir=scratch))
    try:
        size = make_lake(folder / "lake", rows)
        command = [sys.executable, "-c", CHILD, str(folder / "lake"), DAY.isoformat(), str(folder / "quality")]
        load = os.getloadavg()[0]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {"rows": rows, "file_mib": size, "load": load, **json.loads(done.stdout)}
    finally:
        shutil.rmtree(folder)


def table(found: list[dict], command: str) -> str:
    lines = [
        f"{hardware()}, {dt.date.today()}, commit {commit()}.",
        f"`{command}`",
        "",
        "| impressions | Parquet MiB | checks | seconds | CPU seconds, imports too | peak MiB | load at its start |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found:
        lines.append(
            f"| {r['rows']:,} | {r['file_mib']:.0f} | {r['checks']} | {r['seconds']:.1f} "
            f"| {r['cpu_s']:.1f} | {r['peak_mib']:.0f} | {r['load']:.1f} |"
        )
        lines += [f"\nfailed at {r['rows']:,}: {', '.join(r['failed'])}"] if r["failed"] else []
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--out", type=Path, help="write the table here as well")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args(argv)
    text = table(
        [measure(rows, args.scratch) for rows in args.rows], "python -m benchmarks.data_quality.validate_speed"
    )
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
