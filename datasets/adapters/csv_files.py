"""Strict reading of CSV files: every fault is a DataError that names the file, the line, the value and the mend.

DuckDB does the reading, in one pass into a typed table. The text is checked first (encoding, a cut last line), because
a reader that guesses would take a damaged file for a shorter or a stranger one.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from datasets.errors import DataError

_BLOCK = 8 << 20


def load_csv(
    con: duckdb.DuckDBPyConnection,
    table: str,
    files: Sequence[Path],
    columns: Mapping[str, str],
    required: Sequence[str],
) -> None:
    """Create the temporary table `table` from CSV files with a header line.

    columns: DuckDB type of each column to read; further columns of the files are left out. Empty values are null,
    except in the `required` columns, where they are a fault. Raises DataError for a missing column, another encoding, a
    cut file, a line with too few or too many columns, and a value that is not of the column's type.
    """
    for number, file in enumerate(files):
        header = _check(file, columns)
        casts = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in columns.items())
        verb = f"CREATE OR REPLACE TEMP TABLE {table} AS" if number == 0 else f"INSERT INTO {table}"
        try:
            con.execute(f"{verb} SELECT {casts} FROM {_scan(file, header)}")
        except duckdb.ConversionException:
            _raise_for_value(con, file, header, columns, required)
            raise
        except duckdb.InvalidInputException as error:
            _raise_for_line(file, header, error)
    empty = " OR ".join(f'"{name}" IS NULL' for name in required)
    if con.execute(f"SELECT 1 FROM {table} WHERE {empty} LIMIT 1").fetchall():
        for file in files:
            _raise_for_value(con, file, _header(file), columns, required)


def _check(file: Path, columns: Mapping[str, str]) -> list[str]:
    """Check the encoding, the last line and the header of a file; return the header."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, last, at = 1, b"", 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            if (at == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))) or b"\0" in block:
                raise DataError(f"{file} is not UTF-8 but looks like UTF-16: run iconv -f UTF-16 -t UTF-8 on it first")
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                line = lines + block[: error.start].count(b"\n")
                raise DataError(
                    f"{file} line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}): if it is in Latin-1, "
                    "run iconv -f LATIN1 -t UTF-8 on it first"
                ) from None
            lines, last, at = lines + block.count(b"\n"), block[-1:], at + len(block)
    if not at:
        raise DataError(f"{file} is empty: copy it again from its origin")
    if last != b"\n":
        raise DataError(
            f"{file} line {lines}, the last, has no line end: the file was cut. Copy it again from its origin; "
            "if it is whole, end it with a line feed"
        )
    header = _header(file)
    for name in columns:
        if header.count(name) != 1:
            fault = "has no column" if name not in header else "has more than one column"
            raise DataError(f"{file} {fault} {name!r} (its columns: {', '.join(header)}): mend the header line")
    return header


def _header(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return next(csv.reader(io.StringIO(stream.readline())), [])


def _scan(file: Path, header: list[str]) -> str:
    names = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in header)
    return (
        f"read_csv({quoted(str(file))}, auto_detect=false, header=true, columns={{{names}}}, delim=',', quote='\"', "
        "escape='\"', strict_mode=true, null_padding=false, ignore_errors=false, max_line_size=16777216)"
    )


def quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


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


def _raise_for_value(
    con: duckdb.DuckDBPyConnection, file: Path, header: list[str], columns: Mapping[str, str], required: Sequence[str]
) -> None:
    """Raise for the first value of the file that is not of its type, or is empty in a required column, if any."""
    for name, kind in columns.items():
        fault = f'("{name}" IS NOT NULL AND TRY_CAST("{name}" AS {kind}) IS NULL)'
        if name in required:
            fault += f' OR "{name}" IS NULL'
        numbered = f'SELECT row_number() OVER () + 1 AS line, "{name}" FROM {_scan(file, header)}'
        for line, text in con.execute(f"SELECT * FROM ({numbered}) WHERE {fault} ORDER BY line LIMIT 1").fetchall():
            value = "empty" if text is None else f"{text!r}, not a {kind}"
            raise DataError(f"{file} line {line}, column {name!r} is {value}: mend or remove that line")
