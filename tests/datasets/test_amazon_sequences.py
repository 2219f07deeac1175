"""The Amazon sequences as benchmarks read them: all of it, in order, with text, or an error that names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.adapters.amazon import read_amazon
from datasets.errors import DataError

ITEMS = [
    {"item_id": 2, "title": None, "categories": None, "short_text": "cleaning picks"},
    {"item_id": 1, "title": "Nail Lacquer", "categories": [["Beauty", "Nails"], ["Beauty", "Sets"]], "short_text": "x"},
    {"item_id": 3, "title": None, "categories": None, "short_text": None},
]


def write(folder: Path, sequences: str = "7 1 2 3 1\n9 3 2 1\n", items: list[dict] = ITEMS) -> Path:
    (folder / "sequences.txt").write_text(sequences)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def test_sequences_split_and_texts(tmp_path: Path) -> None:
    found = read_amazon(write(tmp_path))
    assert found.users_U.tolist() == [7, 9] and found.item_count == 3
    assert [found.sequence(u).tolist() for u in (0, 1)] == [[1, 2, 3, 1], [3, 2, 1]]
    history, validation, test = found.split(0)
    assert (history.tolist(), validation, test) == ([1, 2], 3, 1)
    assert found.texts == ["", "Nail Lacquer. Beauty. Nails. Sets", "cleaning picks", ""]


@pytest.mark.parametrize(
    ("sequences", "items", "message"),
    [
        ("7 1 x 3\n", ITEMS, r"sequences\.txt line 1 is no row of ids"),
        ("7 1 2 3\n9 3 2\n", ITEMS, r"line 2 has 2 items: leave-last-out needs 3"),
        ("7 1 2 4\n", ITEMS, r"line 1 has an item that items\.jsonl lacks: items are 1 to 3"),
        ("7 1 2 3\n7 3 2 1\n", ITEMS, "has a user twice"),
        ("7 1 2 3\n", ITEMS[:1], "does not have every item from 1 to 1 once"),
        ("7 1 2 3\n", [{"title": "no id"}], r"items\.jsonl line 1 is no item"),
    ],
)
def test_faults_are_named(sequences: str, items: list[dict], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_amazon(write(tmp_path, sequences, items))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.jsonl is missing"):
        read_amazon(tmp_path)
