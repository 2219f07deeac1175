"""The known layouts, and which of them a folder is in. A new adapter is added to ADAPTERS."""

from __future__ import annotations

from pathlib import Path

from datasets.adapters.base import Adapter
from datasets.adapters.contract_parquet import ContractParquet
from datasets.adapters.kuairand import KuaiRand
from datasets.errors import DataError

ADAPTERS: tuple[type[Adapter], ...] = (KuaiRand, ContractParquet)


def detect(source: Path) -> Adapter:
    """The adapter of a folder, told by its file names. Raises DataError for no folder and for an unknown layout."""
    if not source.is_dir():
        raise DataError(f"source {source} is not a folder: give the folder that holds the log files")
    for adapter in ADAPTERS:
        if adapter.matches(source):
            return adapter(source)
    entries = sorted(path.name + "/" * path.is_dir() for path in source.iterdir())
    found = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "")
    known = "\n  ".join(adapter.layout for adapter in ADAPTERS)
    raise DataError(
        f"source {source} is in no known layout. Known layouts:\n  {known}\nFound there: {found or 'nothing'}.\n"
        "Rename the files, or write an adapter (datasets/adapters/base.py says how)"
    )
