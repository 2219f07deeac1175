"""Where Feast finds the pathway tables: the day partitions below `features/`, read as one table by a glob.

A source is the pattern `<features>/<view>/dt=*/part-0.parquet`, absolute, because Feast's DuckDB store hands it to
DuckDB as it is, and a relative one would be resolved from the working directory of the moment.
"""

from __future__ import annotations

from pathlib import Path

from feast import FileSource
from feast.data_format import ParquetFormat

from datasets.partitions import PART

TIMESTAMP = "event_timestamp"


def source_of(features: Path, view: str) -> FileSource:
    """The partitions of one view. The folder need not exist yet; nothing is read or inferred from it."""
    return FileSource(
        name=f"{view}_partitions",
        path=f"{features.resolve()}/{view}/dt=*/{PART}",
        file_format=ParquetFormat(),
        timestamp_field=TIMESTAMP,
    )
