"""Strict reading of CSV files: every fault is a DataError that names the file, the line, the value and the mend.

    log = CsvScan(files, {"user_id": "BIGINT", ...}, required=("user_id",))
    con.execute(f"SELECT * FROM ({log.sql})")        # a stream: nothing is loaded
    load_csv(con, "users", files, {...}, required=("user_id",))     # a small file, into a temporary table

DuckDB does the reading, in a stream, plain or gzip (`.gz`). The text is checked first (encoding, a cut last line),
because a reader that guesses would take a damaged file for a shorter or a stranger one.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import duckdb

from datasets.errors import DataError

_BLOCK = 8 << 20
_LINE = 2 << 20  # the longest line; DuckDB holds several buffers of four of them


class CsvScan:
    """CSV files of one table with a header line each, as a query that reads them when it is run."""

    def __init__(self, files: Sequence[Path], columns: Mapping[str, str], required: Sequence[str] = ()) -> None:
        """columns: DuckDB type of each column to read; further columns of the files are left out. Empty values are
        null, except in the `required` columns, where they are a fault.

        Raises DataError for a missing column, another encoding, an empty or a cut file.
        """
        self.columns, self.required = dict(columns), tuple(required)
        self.headers = {file: _check(file, columns) for file in files}

    @property
    def sql(self) -> str:
        """The query. A value of another type ends it with a DuckDB error, which `explain` can explain."""
        casts = ", ".join(f'{self._value(name, kind)} AS "{name}"' for name, kind in self.columns.items())
        return " UNION ALL ".join(f"SELECT {casts} FROM {_scan(f, header)}" for f, header in self.headers.items())

    def explain(self, con: duckdb.DuckDBPyConnection) -> None:
        """Read the files once more, and raise DataError for the first line or value that is faulty, if there is one."""
        for file, header in self.headers.items():
            try:
                self._raise_for_value(con, file, header)
            except duckdb.InvalidInputException as error:
                _raise_for_line(file, header, error)

    def _value(self, name: str, kind: str) -> str:
        cast = f'CAST("{name}" AS {kind})'
        return f"coalesce({cast}, error('{name} is empty'))" if name in self.required else cast

    def _raise_for_value(self, con: duckdb.DuckDBPyConnection, file: Path, header: list[str]) -> None:
        whens = []
        for name, kind in self.columns.items():
            fault = f'("{name}" IS NOT NULL AND TRY_CAST("{name}" AS {kind}) IS NULL)'
            if name in self.required:
                fault += f' OR "{name}" IS NULL'
            whens.append(f"WHEN {fault} THEN ['{name}', \"{name}\"]")
        query = f"""SELECT line, fault[1], fault[2] FROM (
            SELECT row_number() OVER () + 1 AS line, CASE {" ".join(whens)} END AS fault FROM {_scan(file, header)})
            WHERE fault IS NOT NULL ORDER BY line LIMIT 1"""
        for line, name, text in con.execute(query).fetchall():
            value = "empty" if text is None else f"{text!r}, not a {self.columns[name]}"
            raise DataError(f"{file} line {line}, column {name!r} is {value}: mend or remove that line")


def load_csv(
    con: duckdb.DuckDBPyConnection,
    table: str,
    files: Sequence[Path],
    columns: Mapping[str, str],
    required: Sequence[str],
) -> None:
    """Create the temporary table `table` from CSV files, as `CsvScan` reads them; DataError for whatever is faulty."""
    scan = CsvScan(files, columns, required)
    try:
        con.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {scan.sql}")
    except (duckdb.ConversionException, duckdb.InvalidInputException):
        scan.explain(con)
        raise


def quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb"))


def _check(file: Path, columns: Mapping[str, str]) -> list[str]:
    """Check the encoding, the last line and the header of a file, block by block; return the header."""
    try:
        header = _check_text(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is no whole gzip file ({error}): copy it again from its origin") from None
    for name in columns:
        if header.count(name) != 1:
            fault = "has no column" if name not in header else "has more than one column"
            raise DataError(f"{file} {fault} {name!r} (its columns: {', '.join(header)}): mend the header line")
    return header


def _check_text(file: Path) -> list[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, last, first = 1, b"", None
    with _open(file) as stream:
        while block := stream.read(_BLOCK):
            if (first is None and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))) or b"\0" in block:
                raise DataError(f"{file} is not UTF-8 but looks like UTF-16: run iconv -f UTF-16 -t UTF-8 on it first")
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                line = lines + block[: error.start].count(b"\n")
                raise DataError(
                    f"{file} line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}): if it is in Latin-1, "
                    "run iconv -f LATIN1 -t UTF-8 on it first"
                ) from None
            first = block.split(b"\n", 1)[0] if first is None else first
            lines, last = lines + block.count(b"\n"), block[-1:]
    if first is None:
        raise DataError(f"{file} is empty: copy it again from its origin")
    if last != b"\n":
        raise DataError(
            f"{file} line {lines}, the last, has no line end: the file was cut. Copy it again from its origin; "
            "if it is whole, end it with a line feed"
        )
    return next(csv.reader(io.StringIO(first.decode("utf-8-sig").rstrip("\r"))), [])


def _scan(file: Path, header: list[str]) -> str:
    names = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in header)
    return (
        f"read_csv({quoted(str(file))}, auto_detect=false, header=true, columns={{{names}}}, delim=',', quote='\"', "
        "escape='\"', strict_mode=true, null_padding=false, ignore_errors=false, "
        f"max_line_size={_LINE}, buffer_size={4 * _LINE})"
    )


def _raise_for_line(file: Path, header: list[str], error: duckdb.Error) -> None:
    found = re.search(r"Line:\s*(\d+)", str(error))
    counts = re.search(r"Expected Number of Columns:\s*(\d+)\s*Found:\s*(\d+)", str(error))
    fault = (
        f"has {counts[2]} columns in place of {len(header)}"
        if counts
        else f"cannot be read ({str(error).splitlines()[0]})"
    )
    where = f"line {found[1]}" if found else "somewhere"
    raise DataError(f"{file} {where} {fault}: the file was cut or damaged. Copy it again from its origin") from None
