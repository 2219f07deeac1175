"""What an adapter is: the few questions the ingest asks of a source in its own layout.

To bring your own logs in a new layout, subclass `Adapter`, answer the questions with SQL that DuckDB runs, and add the
class to ADAPTERS in `datasets/adapters/__init__.py`; `onerec data scaffold-adapter NAME` writes a first version and
its test, and `datasets/adapters/kit.py` is what every adapter must pass. An adapter only renames and casts: the ingest
drops duplicates, judges times and play times, and counts, for every source alike. An adapter raises DataError. It
reads a result to its end (fetchall), as DuckDB holds the connection until then.

Queries are run once each, in a stream: one over `CsvScan` or `read_parquet` needs no memory for the file's size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import date
from pathlib import Path
from typing import ClassVar

import duckdb

from datasets.adapters.csv_files import CsvScan


class Adapter(ABC):
    """A source folder, read through SQL. Queries give the columns of `datasets.contract`, by name.

    Times in the queries are UTC and without a zone (TIMESTAMP); ids are BIGINT; an absent column is CAST(NULL AS type).
    """

    name: ClassVar[str]
    layout: ClassVar[str]  # one line: the files that this layout consists of, for the error about an unknown one
    timezone: str = "UTC"  # the zone whose midnight ends a log day

    def __init__(self, source: Path) -> None:
        self.source = source
        self.scans: dict[str, CsvScan] = {}

    @classmethod
    @abstractmethod
    def matches(cls, source: Path) -> bool:
        """Whether the folder's file names are those of this layout. Opens no file."""

    @abstractmethod
    def days(self, con: duckdb.DuckDBPyConnection) -> list[date]:
        """The log days that the source has, in order."""

    @abstractmethod
    def files(self, day: date) -> list[Path]:
        """The files that the impressions of a day come from: unchanged files mean an unchanged partition."""

    @abstractmethod
    def impressions(self, con: duckdb.DuckDBPyConnection, days: list[date]) -> str:
        """Query: the impressions of these log days in the source's order, and `dt` DATE, the log day."""

    @abstractmethod
    def items(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        """Query: the items as known on a day."""

    @abstractmethod
    def users(self, con: duckdb.DuckDBPyConnection, day: date) -> str:
        """Query: the users as known on a day: user_id and categorical feature columns (VARCHAR or an integer)."""

    def history(self, con: duckdb.DuckDBPyConnection) -> str | None:
        """Query: interactions from before the first day of which only the order is known; None without any."""
        return None

    def scan(self, files: list[Path], columns: dict[str, str], required: tuple[str, ...]) -> str:
        """Query over CSV files, checked once however often it is asked for; `explain` finds what is faulty."""
        key = " ".join(map(str, files))
        if key not in self.scans:
            self.scans[key] = CsvScan(files, columns, required)
        return self.scans[key].sql

    def explain(self, con: duckdb.DuckDBPyConnection) -> None:
        """After a query failed: raise DataError naming the file, line and value, where the scans can tell."""
        for scan in self.scans.values():
            scan.explain(con)
