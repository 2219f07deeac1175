"""Digests that decide whether a step has to run again.

python -c "from kfp_components.digest import code_digest; print(code_digest('models'))"
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RUNTIME_LOCKS = ("ml.txt", "torch-cpu.txt", "cuda.txt", "triton.txt")


def digest_value(value: Any) -> str:
    """sha256 of a JSON value; equal values have equal digests whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@functools.cache
def code_digest(*rooms: str) -> str:
    """sha256 over the source of rooms (folders or files, relative to the repository)."""
    found: dict[str, str] = {}
    for room in rooms:
        place = REPOSITORY / room
        suffixes = (".py", ".sql", ".pbtxt", ".html", ".j2", ".css")
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in suffixes)
        if not files:
            raise ValueError(f"{room} holds no code; name a folder or file of the repository")
        found |= {str(p.relative_to(REPOSITORY)): digest_file(p) for p in files}
    return digest_value(found)


@functools.cache
def environment_locks() -> dict[str, str]:
    """sha256 of each lock file that the runtime environment is built from; empty in an image without them."""
    files = [REPOSITORY / "locks" / name for name in RUNTIME_LOCKS]
    return {file.name: digest_file(file) for file in files if file.is_file()}


def data_fingerprint(folder: Path) -> dict[str, list[int]]:
    """Name -> [size, mtime] of the files of a data folder: cheap for terabytes, changes when a file is replaced."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give DATA=<folder with logs in a known layout>")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}
