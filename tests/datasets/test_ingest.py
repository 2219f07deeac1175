"""The ingest as a whole: what it writes for a day, that it repeats itself, and both layouts."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_kuairand import DAYS, KuaiRandFiles, time_ms

from datasets.contract import HISTORY, IMPRESSIONS, ITEMS
from datasets.errors import DataError
from datasets.ingest import ingest
from datasets.partitions import partition_days, read_manifest
from datasets.simulator import simulate


def quiet(text: str) -> None:
    pass


def digests(result: dict) -> dict[str, str]:
    return {name: entry["digest"] for name, entry in result["tables"].items()}


def test_bootstrap_writes_every_day_up_to_the_day_and_the_one_after(files: KuaiRandFiles, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    result = ingest(source=files.write(tmp_path / "s"), day=DAYS[1], lake=lake, bootstrap=True, progress=quiet)
    assert (result["adapter"], result["timezone"]) == ("kuairand", "Asia/Shanghai")
    assert (result["days"], result["evaluation_day"]) == (["2022-04-25", "2022-04-26"], "2022-04-27")
    assert partition_days(lake / "impressions") == DAYS
    assert partition_days(lake / "items") == partition_days(lake / "users") == [DAYS[1]]
    assert read_manifest(lake / "history")["rows"] == 12
    assert result["counts"]["rows_read"] == 24  # the evaluation day is not of the training data
    json.dumps(result)


def test_later_day_writes_only_itself(files: KuaiRandFiles, tmp_path: Path) -> None:
    lake, source = tmp_path / "lake", files.write(tmp_path / "s")
    result = ingest(source=source, day=DAYS[2], lake=lake, bootstrap=False, progress=quiet)
    assert (result["days"], result["evaluation_day"]) == (["2022-04-27"], None)
    assert sorted(result["tables"]) == [f"{table}/dt=2022-04-27" for table in ("impressions", "items", "users")]


def test_tables_have_the_contract_s_columns_and_order(files: KuaiRandFiles, tmp_path: Path) -> None:
    files.log.reverse()
    lake = tmp_path / "lake"
    ingest(source=files.write(tmp_path / "s"), day=DAYS[1], lake=lake, bootstrap=True, progress=quiet)
    impressions = pq.read_table(lake / f"impressions/dt={DAYS[1]}/part-0.parquet", partitioning=None)
    assert impressions.schema.equals(IMPRESSIONS)
    order = list(zip(*(impressions[c].to_pylist() for c in ("event_time", "user_id", "item_id"))))
    assert order == sorted(order)
    assert impressions["event_time"][0].as_py().isoformat() == "2022-04-26T00:00:00+00:00"  # 8 h in Shanghai
    assert impressions["request_id"].null_count == 12  # KuaiRand has none, and none is invented
    assert impressions["is_long_view"].to_pylist()[:4] == [1, 0, 0, 1]
    items = pq.read_table(lake / f"items/dt={DAYS[1]}/part-0.parquet", partitioning=None)
    assert items.schema.equals(ITEMS)
    assert items["tags"].to_pylist()[0] == [3, 7]
    history = pq.read_table(lake / "history/part-0.parquet")
    assert history.schema.equals(HISTORY)
    assert history["is_click"].null_count == 12


def test_the_same_source_gives_the_same_digests(files: KuaiRandFiles, tmp_path: Path) -> None:
    source = files.write(tmp_path / "s")
    first = ingest(source=source, day=DAYS[1], lake=tmp_path / "a", bootstrap=True, progress=quiet)
    again = ingest(source=source, day=DAYS[1], lake=tmp_path / "a", bootstrap=True, progress=quiet)
    files.log.reverse(), files.users.reverse(), files.videos.reverse(), files.history.reverse()
    shuffled = ingest(
        source=files.write(tmp_path / "t"), day=DAYS[1], lake=tmp_path / "b", bootstrap=True, progress=quiet
    )
    assert first == again
    assert digests(first) == digests(shuffled)
    files.log[0]["is_like"] = 1
    changed = ingest(
        source=files.write(tmp_path / "u"), day=DAYS[1], lake=tmp_path / "b", bootstrap=True, progress=quiet
    )
    assert digests(changed) != digests(first)


def test_the_evaluation_day_is_the_same_partition_when_its_turn_comes(files: KuaiRandFiles, tmp_path: Path) -> None:
    source, lake, name = files.write(tmp_path / "s"), tmp_path / "lake", f"impressions/dt={DAYS[2]}"
    early = ingest(source=source, day=DAYS[1], lake=lake, bootstrap=True, progress=quiet)
    late = ingest(source=source, day=DAYS[2], lake=lake, bootstrap=False, progress=quiet)
    assert early["tables"][name]["digest"] == late["tables"][name]["digest"]


def test_a_later_day_knows_what_the_day_before_held(files: KuaiRandFiles, tmp_path: Path) -> None:
    near = files.log[24] | {"time_ms": time_ms(DAYS[2], -0.5)}
    files.log += [near | {"date": "20220426"}, near]
    source = files.write(tmp_path / "s")
    result = ingest(source=source, day=DAYS[2], lake=tmp_path / "lake", bootstrap=False, progress=quiet)
    assert result["counts"]["repeats_day_before"] == 1
    assert result["tables"]["impressions/dt=2022-04-27"]["rows"] == 12


def test_manifest_names_the_source_files_by_content(files: KuaiRandFiles, tmp_path: Path) -> None:
    source = files.write(tmp_path / "s")
    ingest(source=source, day=DAYS[0], lake=tmp_path / "lake", bootstrap=True, progress=quiet)
    manifest = read_manifest(tmp_path / "lake" / f"impressions/dt={DAYS[0]}")
    assert list(manifest["sources"]) == ["log_standard_4_25_to_4_27_tiny.csv"]
    assert manifest["timezone"] == "Asia/Shanghai"


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sim") / "simulated"
    simulate(out, days=3, end=date(2025, 1, 3), users=40, items=60, impressions=900, progress=quiet)
    return out


def copy_with(simulation: Path, target: Path, table: str, change: object) -> Path:
    """A copy of the simulation in which one file of a table went through `change`."""
    for file in simulation.rglob("*.*"):
        new = target / file.relative_to(simulation)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(file.read_bytes())
    for file in sorted((target / table).rglob("*.parquet")):
        pq.write_table(change(pq.read_table(file, partitioning=None)), file)  # type: ignore[operator]
    return target


def test_contract_parquet_is_read_with_its_zone_and_snapshots(simulation: Path, tmp_path: Path) -> None:
    result = ingest(source=simulation, day=date(2025, 1, 2), lake=tmp_path, bootstrap=True, progress=quiet)
    assert (result["adapter"], result["evaluation_day"]) == ("contract-parquet", "2025-01-03")
    snapshot = pq.read_table(simulation / "items/dt=2025-01-02/part-0.parquet", partitioning=None)
    assert result["tables"]["items/dt=2025-01-02"]["rows"] == snapshot.num_rows < 60
    written = pq.read_table(tmp_path / "impressions/dt=2025-01-01/part-0.parquet", partitioning=None)
    assert pc.min(written["event_time"]).as_py().date() >= date(2024, 12, 31)  # the log day begins at 16:00 UTC
    assert result["counts"]["late"] == result["counts"]["ahead_of_day"] == 0


PARQUET_STOPS = {
    "missing column": (
        "impressions",
        lambda t: t.drop(["is_hate"]),
        "has no column 'is_hate': add it, filled with nulls",
    ),
    "text for an id": (
        "impressions",
        lambda t: t.set_column(0, "user_id", pa.array(["u1"] * len(t))),
        r"cannot be read: .*u1",
    ),
    "no rows": ("impressions", lambda t: t.slice(0, 0), "no usable rows for 2025-01-01"),
    "feature that is no category": (
        "users",
        lambda t: t.append_column("height", pa.array([1.7] * len(t))),
        "users column 'height' is DOUBLE, not a category",
    ),
}


@pytest.mark.parametrize("name", PARQUET_STOPS)
def test_contract_parquet_stops_too(name: str, simulation: Path, tmp_path: Path) -> None:
    table, change, message = PARQUET_STOPS[name]
    source = copy_with(simulation, tmp_path / "source", table, change)
    with pytest.raises(DataError, match=message):
        ingest(source=source, day=date(2025, 1, 2), lake=tmp_path / "lake", bootstrap=True, progress=quiet)
    assert not (tmp_path / "lake").exists()


def test_cut_parquet_file_stops(simulation: Path, tmp_path: Path) -> None:
    source = copy_with(simulation, tmp_path / "source", "none", None)
    file = source / "impressions/dt=2025-01-02/part-0.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"part-0\.parquet is no whole Parquet file"):
        ingest(source=source, day=date(2025, 1, 2), lake=tmp_path / "lake", bootstrap=True, progress=quiet)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ('{"timezone": "Mars"}', "Mars")])
def test_bad_source_settings_stop(text: str, message: str, simulation: Path, tmp_path: Path) -> None:
    source = copy_with(simulation, tmp_path / "source", "none", None)
    (source / "source.json").write_text(text)
    with pytest.raises(DataError, match=message):
        ingest(source=source, day=date(2025, 1, 2), lake=tmp_path / "lake", bootstrap=True, progress=quiet)


def test_missing_values_of_the_contract_are_quarantined(simulation: Path, tmp_path: Path) -> None:
    def lose_an_id(table: pa.Table) -> pa.Table:
        ids = table["item_id"].to_pylist()
        nullable = pa.array([None, *ids[1:]], pa.int64())
        return table.set_column(1, "item_id", nullable)

    source = copy_with(simulation, tmp_path / "source", "impressions", lose_an_id)
    result = ingest(source=source, day=date(2025, 1, 1), lake=tmp_path / "lake", bootstrap=True, progress=quiet)
    assert result["counts"]["no_id"] == 1


def test_what_a_killed_ingest_left_is_cleared_away_and_a_living_one_s_is_not(
    files: KuaiRandFiles, tmp_path: Path
) -> None:
    dead, living = (tmp_path / f".lake.ingest-{pid}-x" for pid in (2**22 + 1, os.getpid()))
    for folder in (dead, living):
        (folder / "staged").mkdir(parents=True)
    ingest(source=files.write(tmp_path / "s"), day=DAYS[0], lake=tmp_path / "lake", bootstrap=True, progress=quiet)
    assert not dead.exists() and living.exists()
