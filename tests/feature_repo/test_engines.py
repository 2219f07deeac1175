"""The transformations give the same bytes on DuckDB and on Spark, for random event streams."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from datasets import contract
from datasets.partitions import PART, partition_path, write_partition
from feature_repo.config import PathwaysConfig
from feature_repo.engine import Engine, duckdb_engine, spark_engine
from feature_repo.lifelong_rows import STATE
from feature_repo.pathways import VIEWS, Pathways

DAYS = [date(2022, 5, 1), date(2022, 5, 2)]
START = datetime(2022, 5, 1, tzinfo=UTC)
ITEMS = 12

SIGNAL = st.sampled_from([None, 0, 1])
EVENT = st.tuples(
    # Milliseconds of two days, some of them equal, some within a session of half an hour, some on its very edge.
    st.one_of(st.integers(0, 2 * 86_400_000 - 1), st.sampled_from([0, 1_800_000, 1_800_001, 86_399_999, 86_400_000])),
    st.integers(0, ITEMS - 1),
    st.fixed_dictionaries(dict.fromkeys(contract.LABELS, SIGNAL)),
    st.one_of(st.none(), st.integers(0, 90_000)),
    st.one_of(st.none(), st.integers(1, 90_000)),
)
STREAM = st.lists(EVENT, max_size=30, unique_by=lambda event: event[:2])


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory):
    """A real PySpark in local mode."""
    if not shutil.which("java"):
        pytest.skip("needs Java 17 for Spark: none on the PATH")
    sql = pytest.importorskip("pyspark.sql", reason="needs pyspark")
    builder = sql.SparkSession.builder.master("local[1]").appName("engines")
    for key, value in {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
        "spark.driver.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def write_lake(lake: Path, streams: list[list[tuple]]) -> None:
    """Each stream is a user; the first three users have an untimed history as well."""
    for number, day in enumerate(DAYS):
        rows = [
            {
                "user_id": user,
                "item_id": item,
                "event_time": START + timedelta(milliseconds=ms),
                **labels,
                "play_time_ms": play,
                "duration_ms": duration,
            }
            for user, stream in enumerate(streams)
            for ms, item, labels, play, duration in stream
            # The first five minutes of the second day belong to the log day before: late rows.
            if (ms >= 86_400_000 + 300_000) == bool(number)
        ]
        table = pa.Table.from_pylist(rows, schema=contract.IMPRESSIONS)
        write_partition(partition_path(lake / "impressions", day), table)
    items = [
        {"item_id": i, "author_id": i % 5 - 1, "duration_ms": 9000 if i % 2 else None, "tags": [i % 3] if i else None}
        for i in range(ITEMS)
    ]
    write_partition(partition_path(lake / "items", DAYS[-1]), pa.Table.from_pylist(items, schema=contract.ITEMS))
    users = pa.table(
        {
            "user_id": pa.array(range(len(streams)), pa.int64()),
            "city": [("a", None, "b")[u % 3] for u in range(len(streams))],
        }
    )
    write_partition(partition_path(lake / "users", DAYS[-1]), users)
    old = [{"user_id": u, "item_id": i, "pos": i, "is_like": i % 2} for u in range(3) for i in range(7)]
    write_partition(lake / "history", pa.Table.from_pylist(old, schema=contract.HISTORY))


def build(lake: Path, features: Path, engine: Engine) -> dict[str, bytes]:
    """All partitions, as bytes by name."""
    config = PathwaysConfig(grain="session", redo_events=8, positive_labels=("is_like", "is_click"))
    with Pathways(lake=lake, features=features, day=DAYS[-1], config=config, engine=engine) as pathways:
        for day in DAYS:
            cutoff = pathways.held_back_from(day) if day == DAYS[-1] else None
            pathways.write_views(day, cutoff=cutoff)
            start = pathways.end_of(day - timedelta(days=1))
            pathways.write_labels("labels", day, [(start, start, None, day)])
    names = [*VIEWS, STATE, "labels"]
    return {f"{n}/{d}": (partition_path(features / n, d) / PART).read_bytes() for n in names for d in DAYS}


def generated(count: int) -> list[list[tuple]]:
    """Random streams by hypothesis, from the plainest to long ones."""
    found: list[list[tuple]] = []

    @settings(max_examples=count, deadline=None, phases=[Phase.generate], derandomize=True, database=None)
    @given(STREAM)
    def collect(stream: list[tuple]) -> None:
        found.append(stream)

    collect()
    return found


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[tuple]], Path, dict[str, bytes]]:
    """Many streams as the users of one lake, and what DuckDB makes of them."""
    base, streams = tmp_path_factory.mktemp("engines"), generated(150)
    write_lake(base / "lake", streams)
    return streams, base, build(base / "lake", base / "duckdb", duckdb_engine(threads=1))


@pytest.mark.timeout(900)
def test_both_engines_give_the_same_bytes(spark, streams) -> None:
    _, base, ours = streams
    theirs = build(base / "lake", base / "spark", spark_engine(spark))
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert len(ours) == 7 * 2


def test_a_sessions_context_is_all_that_came_strictly_before_it(streams) -> None:
    """Label rows and the newest short row at or before each, against a plain reading of the same streams."""
    found, base, _ = streams
    rows = {name: {} for name in ("labels", "user_short")}
    for name, table in rows.items():
        for path in (base / "duckdb" / name).glob(f"dt=*/{PART}"):
            for row in pq.read_table(path, partitioning=None).to_pylist():
                at = round((row["event_timestamp"] - START).total_seconds() * 1000)
                table.setdefault(row["user_id"], {})[at] = row
    sessions = 0
    for user, stream in enumerate(found):
        for number in range(2):
            today = sorted(e[:2] for e in stream if (e[0] >= 86_400_000 + 300_000) == bool(number))
            starts = [ms for i, (ms, _) in enumerate(today) if i == 0 or ms - today[i - 1][0] > 1_800_000]
            for start, end in zip(starts, [*starts[1:], 1 << 40]):
                shown = [item for ms, item in today if start <= ms < end]
                # A label row is stamped later than its day's first instant.
                stamp = max(start, number * 86_400_000 + 1)
                assert rows["labels"][user][stamp]["item_id"] == shown
                at = max((t for t in rows["user_short"].get(user, {}) if t <= stamp), default=None)
                known = [i for i in range(7) if user < 3] + [
                    item for ms, item in sorted(e[:2] for e in stream) if ms < start
                ]
                assert (rows["user_short"][user][at]["short_item_id"] if at is not None else []) == known[-20:]
                sessions += 1
    assert sessions > 200


def test_a_table_given_by_a_name_again_frees_the_one_before() -> None:
    """Or the tables of all ranges of users would pile up, beside DuckDB's limit."""
    engine, rows, before = duckdb_engine(), 1_000_000, pa.total_allocated_bytes()
    for first in range(4):
        given = engine.table("given", pa.table({"number": pa.array(range(first, first + rows), pa.int64())}))
        assert engine.arrow(given.aggregate(low=given.number.min()))["low"].to_pylist() == [first]
    assert 8 * rows <= pa.total_allocated_bytes() - before < 2 * 8 * rows
    engine.close()
