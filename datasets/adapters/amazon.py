"""Amazon 2014 5-core review sequences (McAuley et al.), as TIGER, P5 and S3-Rec use them. Benchmarks only.

    beauty = read_amazon(Path("amazon14/beauty"))
    beauty.split(0)            # -> history, validation target, test target of the first user

This is no `Adapter`: the sets have an order and no clock, so they cannot become log days. Research use only: test and
benchmark with them, never ship them. A folder holds `sequences.txt` (`user item item ...`, oldest first, ids from 1)
and `items.jsonl` (`item_id`, `asin`, `title`, `categories`, `short_text`, ...; a field that a set lacks is null).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import DataError


@dataclass(frozen=True, kw_only=True)
class AmazonSequences:
    """Sequences of all users in one array: user u's items are `items_N[starts_U[u]:starts_U[u + 1]]`, oldest first.

    users_U: ids as the file has them. texts: one an item id, "" where nothing is known; index 0 is no item.
    """

    users_U: np.ndarray
    starts_U: np.ndarray
    items_N: np.ndarray
    texts: list[str]

    @property
    def item_count(self) -> int:
        """Items have the ids 1 to this."""
        return len(self.texts) - 1

    def sequence(self, user: int) -> np.ndarray:
        """All items of the user with this index, oldest first."""
        return self.items_N[self.starts_U[user] : self.starts_U[user + 1]]

    def split(self, user: int) -> tuple[np.ndarray, int, int]:
        """Leave-last-out: training history, the validation item (second last) and the test item (last)."""
        items = self.sequence(user)
        return items[:-2], int(items[-2]), int(items[-1])


def read_amazon(folder: Path) -> AmazonSequences:
    """Read a set. Raises DataError naming file and line for whatever is not in the layout above."""
    texts = _texts(folder / "items.jsonl")
    users, lengths, items = [], [], []
    file = folder / "sequences.txt"
    for number, line in enumerate(_lines(file), 1):
        try:
            user, *sequence = map(int, line.split())
        except ValueError:
            raise DataError(f"{file} line {number} is no row of ids: copy the file again") from None
        if len(sequence) < 3:
            raise DataError(f"{file} line {number} has {len(sequence)} items: leave-last-out needs 3, drop the user")
        if not (min(sequence) >= 1 and max(sequence) < len(texts)):
            raise DataError(f"{file} line {number} has an item that items.jsonl lacks: items are 1 to {len(texts) - 1}")
        users.append(user)
        lengths.append(len(sequence))
        items += sequence
    if len(set(users)) < len(users):
        raise DataError(f"{file} has a user twice: copy the file again")
    return AmazonSequences(
        users_U=np.array(users, np.int64),
        starts_U=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items_N=np.array(items, np.int64),
        texts=texts,
    )


def _texts(file: Path) -> list[str]:
    found: dict[int, str] = {}
    for number, line in enumerate(_lines(file), 1):
        try:
            item = json.loads(line)
            found[int(item["item_id"])] = _text(item)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} line {number} is no item ({error}): copy the file again") from None
    if sorted(found) != list(range(1, len(found) + 1)):
        raise DataError(f"{file} does not have every item from 1 to {len(found)} once: copy the file again")
    return ["", *(found[number] for number in range(1, len(found) + 1))]


def _text(item: dict[str, Any]) -> str:
    """Title, else the short text, then the categories from general to special."""
    categories = [name for path in item.get("categories") or [] for name in path]
    parts = [item.get("title") or item.get("short_text") or "", *dict.fromkeys(categories)]
    return ". ".join(part for part in parts if part)


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise DataError(f"{file} is missing: give a folder with sequences.txt and items.jsonl")
    return file.read_text(encoding="utf-8").splitlines()
