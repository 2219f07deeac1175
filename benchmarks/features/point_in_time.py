"""Point-in-time join of label rows with a feature view: ours beside plain DuckDB and Feast's own offline stores.

    python -m benchmarks.features.point_in_time --rows 100000 1000000 10000000 [--work FOLDER]

For each size: N label rows (user, time) and N feature rows (user, time, four int64 in a list) in 30 day partitions, of
N / 10 users, all random. Each contender runs in a process of its own, from Parquet files to an Arrow table in memory;
a round runs all of them, one after the other:

- `asof`: the ASOF join that one would write by hand in DuckDB, lists and all.
- `ours`: feature_repo.offline_duckdb through `FeatureStore.get_historical_features`, labels given as a query.
- `asof, frame` and `ours, frame`: the same two with the labels in a pandas frame, which is there before the clock runs.
- `feast duckdb`: Feast's DuckDB store.   - `feast file`: Feast's default (Dask) store, which drops rows; both as frame.

Memory is the peak resident set of the process less what it held when its imports were done. Every answer is compared
with that of `asof` by a digest over all of its rows. Writes benchmarks/features/point_in_time.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import commit, processor

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAYS = 30
WIDTH = 4
VIEW = "user_static"
COLUMN = "static_codes"
CONTENDERS = ("asof", "ours", "asof, frame", "ours, frame", "feast duckdb", "feast file")
LIMIT_S = 600
ANSWER = pa.schema([("label_row", pa.int64()), (COLUMN, pa.list_(pa.int64()))])
TABLE = Path(__file__).with_suffix(".md")


def write_data(folder: Path, rows: int, seed: int = 1) -> None:
    """Labels in one file, features in a file a day, both in a random order of users."""
    rng = np.random.default_rng(seed)
    users = max(rows // 10, 1)
    start_ms = int(START.timestamp() * 1000)
    stamp = pa.timestamp("ms", "UTC")
    (folder / "labels").mkdir(parents=True)
    times = start_ms + rng.integers(0, DAYS * 86_400_000, rows)
    label = {"user_id": pa.array(rng.integers(0, users, rows)), "event_timestamp": pa.array(times).cast(stamp)}
    pq.write_table(pa.table({**label, "label_row": pa.array(np.arange(rows))}), folder / "labels" / "part-0.parquet")
    for day in range(DAYS):
        count = rows * (day + 1) // DAYS - rows * day // DAYS
        times = start_ms + rng.integers(day * 86_400_000, (day + 1) * 86_400_000, count)
        values = pa.array(rng.integers(0, 8192, count * WIDTH))
        lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * WIDTH, pa.int32()), values)
        out = folder / "features" / VIEW / f"dt={(START + dt.timedelta(days=day)).date()}" / "part-0.parquet"
        out.parent.mkdir(parents=True)
        table = {"user_id": pa.array(rng.integers(0, users, count)), "event_timestamp": pa.array(times).cast(stamp)}
        pq.write_table(pa.table({**table, COLUMN: lists}), out)


def plain(contender: str, folder: Path) -> Callable[[], pa.Table]:
    """A call of the ASOF join that one would write by hand."""
    import duckdb

    connection, labels = duckdb.connect(), f"read_parquet('{folder}/labels/part-0.parquet')"
    if contender.endswith("frame"):
        connection.register("frame", pq.read_table(folder / "labels" / "part-0.parquet").to_pandas())
        labels = "frame"
    query = f"""SELECT l.*, f.{COLUMN} FROM {labels} l ASOF LEFT JOIN
        read_parquet('{folder}/features/{VIEW}/dt=*/part-0.parquet', hive_partitioning = false) f
        ON l.user_id = f.user_id AND l.event_timestamp >= f.event_timestamp"""
    return lambda: connection.sql(query).to_arrow_table()


def through_feast(contender: str, folder: Path) -> Callable[[], pa.Table]:
    """A call that joins through a Feast store. Applying the definitions is not part of it."""
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    from feature_repo.profiles import LocalProfile
    from feature_repo.store import apply, quiet

    profile, home = LocalProfile(), Path(tempfile.mkdtemp(dir=folder))
    apply(features=folder / "features", feature_store=home, profile=profile)
    config = profile.repo_config(home)
    if contender.startswith("feast"):
        config = RepoConfig(**{**config.model_dump(by_alias=True), "offline_store": {"type": contender.split()[1]}})
    with quiet():
        store = FeatureStore(config=config)
    labels = folder / "labels" / "part-0.parquet"
    entity = f"SELECT * FROM read_parquet('{labels}')" if contender == "ours" else pq.read_table(labels).to_pandas()

    def run() -> pa.Table:
        with quiet():
            return store.get_historical_features(entity_df=entity, features=[f"{VIEW}:{COLUMN}"]).to_arrow()

    return run


def one(contender: str, folder: Path) -> dict[str, float | str]:
    """Seconds, CPU seconds, MiB and the answer's digest of one join in this process."""
    run = (plain if contender.startswith("asof") else through_feast)(contender, folder)
    before, wall, cpu = _peak_mib(), time.perf_counter(), time.process_time()
    table = run()
    found = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "mib": _peak_mib() - before}
    return {**found, "rows": table.num_rows, "digest": _digest(table)}


def _peak_mib() -> float:
    """Not getrusage: its peak is that of the parent at the fork, if that was larger."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def _digest(table: pa.Table) -> str:
    """One number of the whole answer, whatever the order of its rows."""
    import duckdb

    with duckdb.connect() as connection:
        connection.register("answer", table.select(["label_row", COLUMN]).cast(ANSWER))
        return str(connection.sql(f"SELECT sum(hash(label_row, {COLUMN})), count({COLUMN}) FROM answer").fetchall()[0])


def measure(contenders: list[str], folder: Path, rounds: int) -> dict[str, dict | None]:
    """The medians of each contender over interleaved rounds; None for one that fails or takes too long once."""
    results: dict[str, list[dict | None]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, found in results.items():
            if None not in found:
                found.append(_in_a_process(contender, folder))
    return {contender: _middle(found) for contender, found in results.items()}


def _middle(found: list[dict | None]) -> dict | None:
    whole = [result for result in found if result is not None]
    if len(whole) < len(found):
        return None
    return {**whole[0], **{key: statistics.median(r[key] for r in whole) for key in ("seconds", "cpu", "mib")}}


def _in_a_process(contender: str, folder: Path) -> dict | None:
    command = [sys.executable, "-m", "benchmarks.features.point_in_time", "--one", contender, "--work", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep the data here, use what is there (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.work)))
        return
    lines = [
        "# Point-in-time join", "",
        "| label rows | store | seconds | CPU seconds | times the plain join | peak MiB | rows back | answer |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        for rows in args.rows:
            folder = (args.work or Path(temporary)) / str(rows)
            if not folder.exists():
                write_data(folder, rows)
            found = measure(args.contenders, folder, args.rounds)
            for contender in args.contenders:
                base = "asof" if contender in ("asof", "ours") or "asof, frame" not in found else "asof, frame"
                lines.append(_line(rows, contender, found[contender], found[base], base))
                print(lines[-1], flush=True)
    lines += [
        "",
        f"Median of {args.rounds} interleaved rounds, each in a process of its own. `asof`: written by hand in DuckDB."
        " `ours`: labels as a query. The others: as a pandas frame that is there before, and in times `asof, frame`."
        " Peak MiB: of the process, less what it held before.",
        "",
        f"- command: python -m benchmarks.features.point_in_time --rows {' '.join(map(str, args.rows))}"
        f" --contenders {' '.join(map(repr, args.contenders))} --rounds {args.rounds}",
        f"- hardware: {processor()}, {os.cpu_count()} cores; load when it ended {os.getloadavg()[1]:.1f}",
        f"- commit {commit()}, {dt.date.today()}",
    ]
    args.out.write_text("\n".join(lines) + "\n")


def _line(rows: int, contender: str, found: dict | None, base: dict | None, name: str) -> str:
    if found is None or base is None:
        return f"| {rows:,} | {contender} | no answer within {LIMIT_S} s or the memory of the machine | | | | | |"
    ratio = f"{found['seconds'] / base['seconds']:.2f} (CPU {found['cpu'] / base['cpu']:.2f})"
    same = f"as `{name}`" if found["digest"] == base["digest"] else "**differs**"
    return (
        f"| {rows:,} | {contender} | {found['seconds']:.2f} | {found['cpu']:.2f} | {ratio} | {found['mib']:,.0f}"
        f" | {found['rows']:,} | {same} |"
    )


if __name__ == "__main__":
    main()
