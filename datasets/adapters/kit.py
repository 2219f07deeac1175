"""What every adapter must pass. Its test is one line, on a small folder in its layout with two log days or more:

    check_adapter(Shop, source=tmp_path / "shop", scratch=tmp_path)

It raises AssertionError with the first promise of `Adapter` that is broken. `datasets/adapters/scaffold.py` writes such
a test; those of the adapters here use it too.
"""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb

from datasets import adapters
from datasets.adapters.base import Adapter
from datasets.contract import HISTORY, IMPRESSIONS, ITEMS, LABELS
from datasets.errors import DataError
from datasets.ingest import ingest
from datasets.partitions import read_manifest

_TYPES = {"int64": "BIGINT", "int32": "INTEGER", "int8": "TINYINT", "string": "VARCHAR"}
_TYPES |= {"timestamp[ms, tz=UTC]": "TIMESTAMP", "list<item: int32>": "INTEGER[]", "list<item: string>": "VARCHAR[]"}
_TYPES |= {"list<item: float>": "FLOAT[]", "list<element: int32>": "INTEGER[]", "list<element: string>": "VARCHAR[]"}
_TYPES |= {"list<element: float>": "FLOAT[]"}
_CATEGORIES = ("VARCHAR", "BIGINT", "INTEGER", "SMALLINT", "TINYINT")


def check_adapter(adapter: type[Adapter], *, source: Path, scratch: Path) -> None:
    """Hold an adapter to its promises on a sample folder. `scratch`: a folder to write into; `source` is left alone.

    AssertionError names the promise; anything else that is raised is a fault of the adapter too.
    """
    _check_names(adapter, source, scratch)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        made = adapter(source)
        days = made.days(con)
        _check_days(made, days)
        _check_impressions(con, made, days)
        _check_entities(con, made, days[-1])
    _check_ingest(adapter, source, scratch, days)
    _check_damage(adapter, source, scratch, days[-1])


def _check_names(adapter: type[Adapter], source: Path, scratch: Path) -> None:
    assert adapter.name and adapter.name == adapter.name.lower(), "`name` is lower case"
    assert adapter.layout and "\n" not in adapter.layout, "`layout` is one line that names the files"
    assert adapter.matches(source), f"`matches` knows the sample {source}"
    bare, hollow = scratch / "kit-bare", scratch / "kit-hollow"
    bare.mkdir()
    assert not adapter.matches(bare), "`matches` does not claim an empty folder"
    for file in (f for f in source.rglob("*") if f.is_file()):
        twin = hollow / file.relative_to(source)
        twin.parent.mkdir(parents=True, exist_ok=True)
        twin.touch()
    assert adapter.matches(hollow), "`matches` looks at names only and opens no file"
    others = [a.name for a in adapters.ADAPTERS if a is not adapter and a.matches(source)]
    assert not others, f"the sample is claimed by {', '.join(others)} as well: its file names must tell them apart"
    assert adapter.name not in [a.name for a in adapters.ADAPTERS if a is not adapter], "`name` is not taken"


def _check_days(made: Adapter, days: list[date]) -> None:
    assert len(days) >= 2, "the sample has two log days or more"
    assert days == sorted(set(days)) and all(type(d) is date for d in days), "`days` are dates, in order, each once"
    ZoneInfo(made.timezone)
    for d in days:
        files = made.files(d)
        assert files and all(f.is_file() for f in files), f"`files` of {d} exist"
        assert all(made.source in f.parents for f in files), f"`files` of {d} lie inside the source"


def _check_impressions(con: duckdb.DuckDBPyConnection, made: Adapter, days: list[date]) -> None:
    query = made.impressions(con, days)
    wanted = {"dt": "DATE"} | {field.name: _TYPES[str(field.type)] for field in IMPRESSIONS}
    _check_columns(con, "impressions", query, wanted)
    found = [row[0] for row in con.execute(f"SELECT DISTINCT dt FROM ({query}) ORDER BY dt").fetchall()]
    assert found == days, f"`impressions` of all days has rows of {found}, `days` said {days}"
    for d in days:
        one = made.impressions(con, [d])
        alone = con.execute(f"SELECT count(*), count(*) FILTER (dt = '{d}') FROM ({one})").fetchall()[0]
        among = con.execute(f"SELECT count(*) FROM ({query}) WHERE dt = '{d}'").fetchall()[0][0]
        assert alone == (among, among), f"`impressions` of {d} alone are its rows among all, and only those"
    known = ", ".join(f"count({name})" for name in LABELS)
    assert any(con.execute(f"SELECT {known} FROM ({query})").fetchall()[0]), "some label is known"


def _check_entities(con: duckdb.DuckDBPyConnection, made: Adapter, day: date) -> None:
    _check_columns(con, "items", made.items(con, day), {f.name: _TYPES[str(f.type)] for f in ITEMS})
    users = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE {made.users(con, day)}").fetchall()}
    assert users.get("user_id") == "BIGINT", "`users` has user_id BIGINT"
    odd = [f"{name} {kind}" for name, kind in users.items() if kind not in _CATEGORIES]
    assert not odd, f"the columns of `users` are categories, strings or integers; not so {', '.join(odd)}"
    history = made.history(con)
    if history is not None:
        _check_columns(con, "history", history, {f.name: _TYPES[str(f.type)] for f in HISTORY}, loose=True)


def _check_columns(
    con: duckdb.DuckDBPyConnection, table: str, query: str, wanted: dict[str, str], loose: bool = False
) -> None:
    found = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE SELECT * FROM ({query})").fetchall()}
    assert set(found) == set(wanted), f"`{table}` has the contract's columns; differing: {set(found) ^ set(wanted)}"
    if not loose:
        odd = [f"{name} {found[name]}, not {kind}" for name, kind in wanted.items() if found[name] != kind]
        assert not odd, f"`{table}` has the contract's types: {'; '.join(odd)}"


def _check_ingest(adapter: type[Adapter], source: Path, scratch: Path, days: list[date]) -> None:
    results = [
        ingest(
            source=source,
            day=days[-2],
            lake=scratch / f"kit-lake-{n}",
            bootstrap=True,
            progress=lambda text: None,
            adapter=adapter(source),
        )
        for n in (1, 2)
    ]
    assert results[0] == results[1], "the same source gives the same digests"
    assert results[0]["evaluation_day"] == days[-1].isoformat(), "the day after is there for evaluation"
    for name in (name for name in results[0]["tables"] if name.startswith("impressions")):
        manifest = read_manifest(scratch / "kit-lake-1" / name)
        quarantined = sum(file["rows"] for file in manifest["files"][1:])
        counts = manifest["counts"]
        assert counts["rows_read"] == counts["duplicates"] + quarantined + manifest["rows"], f"{name} lost rows"
        assert quarantined == 0, f"{name} of the sample has rows that cannot be used: {counts}"


def _check_damage(adapter: type[Adapter], source: Path, scratch: Path, day: date) -> None:
    """Each file of the log, cut within its last line, must end the ingest with a DataError, and leave no lake."""
    for number, file in enumerate(adapter(source).files(day)):
        cut, lake = scratch / f"kit-cut-{number}", scratch / f"kit-cut-lake-{number}"
        shutil.copytree(source, cut)
        victim = cut / file.relative_to(source)
        data = victim.read_bytes()
        victim.write_bytes(data[:-3])
        try:
            ingest(source=cut, day=day, lake=lake, bootstrap=True, progress=lambda text: None, adapter=adapter(cut))
        except DataError:
            assert not lake.exists(), f"after a cut {file.name} nothing is written"
        else:
            raise AssertionError(f"a cut {file.name} is a DataError: read CSV by `load_csv` or `scan`")
