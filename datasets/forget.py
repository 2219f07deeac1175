"""Take one user's rows out of every file below a folder, and look for what is left.

    found = search(root, 42)        path -> how many rows or mentions the file holds
    rewrite(path, 42)               the file without them, exchanged atomically

Knows Parquet (a column user_id), JSON and JSON lines (objects with that user_id), and text ("user 42", "user_id=42" in
logs and pages). Other files are looked into as text; databases are the feature store's own business.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.partitions import MANIFEST, PART, read_manifest, write_partition

KEY = "user_id"
SKIPPED = (".safetensors", ".npy", ".db", ".db-wal", ".db-shm", ".pyc", ".lock")
FORGOTTEN = "[forgotten]"
_GROUP = 1 << 17


def search(root: Path, user: int, *, outside: tuple[Path, ...] = ()) -> dict[Path, int]:
    """Every file below the root that holds the user, and how many rows or mentions. `outside`: folders left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        left_out = path.is_symlink() or any(path.is_relative_to(o) for o in outside)
        if path.is_file() and not left_out and (count := mentions(path, user)):
            found[path] = count
    return found


def mentions(path: Path, user: int) -> int:
    """Rows of the user in a table, objects in JSON, mentions in text."""
    if path.suffix == ".parquet":
        if KEY not in pq.read_schema(path).names:
            return 0
        column = pq.read_table(path, columns=[KEY], partitioning=None)[KEY]
        return int(pc.sum(pc.equal(column, user)).as_py() or 0) if len(column) else 0
    if path.suffix in SKIPPED:
        return 0
    text = _text(path)
    if text is None:
        return 0
    parsed = _parse(path, text)
    return (
        _objects(parsed, user) + len(_mention(user).findall(text))
        if parsed is not None
        else len(_mention(user).findall(text))
    )


def rewrite(path: Path, user: int) -> int:
    """The file without the user, in its place; returns what `mentions` counted. A partition gets a new manifest."""
    count = mentions(path, user)
    if not count:
        return 0
    if path.suffix != ".parquet":
        text = _text(path)
        assert text is not None
        parsed = _parse(path, text)
        if isinstance(parsed, list) and path.suffix == ".jsonl":
            text = "".join(json.dumps(_without(row, user)) + "\n" for row in parsed if not _is(row, user))
        elif parsed is not None:
            text = json.dumps(_without(parsed, user), indent=1, ensure_ascii=False) + "\n"
        _replace(path, _mention(user).sub(lambda m: m.group(1) + FORGOTTEN, text).encode())
    elif path.name == PART and (path.parent / MANIFEST).is_file():
        _rewrite_partition(path.parent, user)
    elif (path.parent / MANIFEST).is_file():
        _rewrite_partition(path.parent, user)  # a further file of a partition: all of it is written again
    else:
        staged = path.with_name(f".{path.name}.tmp")
        pq.write_table(_kept(path, user), staged, compression="zstd", row_group_size=_GROUP)
        os.replace(staged, path)
    return count


def _rewrite_partition(folder: Path, user: int) -> None:
    manifest = read_manifest(folder)
    fields = {k: v for k, v in manifest.items() if k not in ("rows", "digest", "files", "counts")}
    others = [f["path"] for f in manifest["files"] if f["path"] != PART]
    extra: dict[str, Any] = {name: _kept(folder / name, user) for name in others}
    forgotten = int(fields.pop("forgotten", 0)) + sum(mentions(folder / f["path"], user) for f in manifest["files"])
    table = _kept(folder / PART, user)
    write_partition(folder, table, counts=manifest["counts"], extra_files=extra, forgotten=forgotten, **fields)


def _kept(path: Path, user: int) -> pa.Table:
    table = pq.read_table(path, partitioning=None)
    if KEY not in table.column_names:
        return table
    return table.filter(pc.fill_null(pc.not_equal(table[KEY], user), True))


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line]
        return json.loads(text) if path.suffix == ".json" else None
    except json.JSONDecodeError:
        return None


def _is(value: Any, user: int) -> bool:
    return isinstance(value, dict) and value.get(KEY) == user


def _objects(value: Any, user: int) -> int:
    return sum(_is(found, user) for found in _walk(value))


def _walk(value: Any) -> Iterator[Any]:
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _walk(child)


def _without(value: Any, user: int) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, user) for k, v in value.items() if not _is(v, user)}
    if isinstance(value, list):
        return [_without(v, user) for v in value if not _is(v, user)]
    return value


def _mention(user: int) -> re.Pattern[str]:
    """ "user 42", "user_id: 42", "user=42"; not "42 users", nor "user 421"."""
    return re.compile(rf"(\buser(?:[_ ]?id)?[\"']?(?:\s|&nbsp;|[:=(])+[\"']?){user}(?![\w.]?\d|\w)", re.IGNORECASE)


def _replace(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.tmp")
    with open(staged, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(staged, path)
