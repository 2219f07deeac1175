"""No training row knows an event that is not strictly earlier than its impressions: simulated logs, real KuaiRand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.errors import DataError
from datasets.ingest import ingest
from datasets.partitions import PART, partition_path
from datasets.simulator import simulate
from feature_repo.build import build_features
from feature_repo.config import PathwaysConfig
from feature_repo.leakage import leaks

HERE = Path(__file__).resolve().parents[2]
KUAIRAND = Path(os.environ.get("ONEREC_KUAIRAND", HERE.parent / "shared" / "data" / "kuairand-pure"))


def build(source: Path, base: Path, day: date, grain: str, history: bool = True) -> Path:
    found = ingest(source=source, day=day, lake=base / "lake", bootstrap=True)
    if not history:
        shutil.rmtree(base / "lake" / "history", ignore_errors=True)
    build_features(
        lake=base / "lake",
        features=base / grain,
        feature_store=base / f"store_{grain}",
        day=day.isoformat(),
        ingest=found,
        previous=None,
        bootstrap=True,
        config=PathwaysConfig(grain=grain),
    )
    return base / grain


def log_of(lake: Path) -> pa.Table:
    """All events: the log's and, before every clock, the untimed ones."""
    history = f"UNION ALL SELECT user_id, item_id, NULL, pos - 1000000000 FROM '{lake}/history/{PART}'"
    with duckdb.connect() as con:
        return con.sql(
            f"""SELECT user_id, item_id, dt::DATE AS dt, epoch_ms(event_time) AS ms
            FROM read_parquet('{lake}/impressions/dt=*/{PART}', hive_partitioning=true)
            {history if (lake / "history").exists() else ""}"""
        ).to_arrow_table()


def check(features: Path, lake: Path) -> Iterator[tuple[date, pa.Table, int]]:
    log = log_of(lake)
    for path in sorted((features / "training").glob("dt=*")):
        day = date.fromisoformat(path.name.removeprefix("dt="))
        if (lake / "impressions" / path.name).exists():
            training = pq.read_table(path / PART, partitioning=None)
            yield day, leaks(training, log, pa.scalar(day)), len(training)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("leakage")
    simulate(base / "logs", days=3, end=date(2026, 1, 5), users=60, items=80, impressions=1500)
    return base, base / "logs"


@pytest.mark.parametrize("grain", ["day", "session"])
def test_no_row_of_simulated_logs_knows_the_future(simulated, grain: str) -> None:
    base, logs = simulated
    features = build(logs, base, date(2026, 1, 4), grain)
    rows = 0
    for day, found, count in check(features, base / "lake"):
        assert found.num_rows == 0, f"{day}: {found.to_pylist()[:3]}"
        rows += count
    assert rows >= 50


def test_a_row_that_knows_its_own_day_is_found(simulated) -> None:
    """The same rows with the context as of the end of their own day leak, in every pathway."""
    base, logs = simulated
    day = date(2026, 1, 4)
    features = build(logs, base, day, "day")
    own = {name: pq.read_table(partition_path(features / name, day) / PART) for name in ("training", "user_seen")}
    late = dict(zip(own["user_seen"]["user_id"].to_pylist(), own["user_seen"]["seen_item_id"].to_pylist()))
    training = own["training"]
    log = log_of(base / "lake")
    seen = pa.array([late[u] for u in training["user_id"].to_pylist()], training["seen_item_id"].type)
    wrong = training.set_column(training.column_names.index("seen_item_id"), "seen_item_id", seen)
    assert set(leaks(wrong, log, pa.scalar(day))["what"].to_pylist()) == {"seen"}
    for name in ("short", "positive", "lifelong"):
        column = f"{name}_time_s"
        stamps = [[int(t.timestamp()) + 86400] for t in training["event_timestamp"].to_pylist()]
        i = training.column_names.index(column)
        wrong = training.set_column(i, column, pa.array(stamps, training[column].type))
        assert leaks(wrong, log, pa.scalar(day))["what"].to_pylist() == [name] * len(training)
    with pytest.raises(DataError, match="does not hold the impressions of this day"):
        leaks(training, log, pa.scalar(day - timedelta(days=1)))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("grain", ["day", "session"])
def test_no_row_of_a_real_kuairand_day_knows_the_future(tmp_path: Path, grain: str) -> None:
    """Every row of the days up to 2022-04-26, among them rows whose clock is outside their log day. Without the
    untimed history, which would take most of the time and has no clock to leak by."""
    if not (KUAIRAND / "log_standard_4_25_to_5_06_pure.csv").exists():
        pytest.skip(f"KuaiRand-Pure is not at {KUAIRAND}: set ONEREC_KUAIRAND to its folder")
    features = build(KUAIRAND, tmp_path, date(2022, 4, 26), grain, history=False)
    rows = 0
    for day, found, count in check(features, tmp_path / "lake"):
        assert found.num_rows == 0, f"{day}: {found.to_pylist()[:3]}"
        rows += count
    assert rows > 10_000
