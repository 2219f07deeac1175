"""From raw events to integers: the edges of every bucket, unknown values, id 0, and the catalogue."""

from __future__ import annotations

import numpy as np
import pytest

from datasets import contract
from models.onerec import features
from models.onerec.features import Catalogue, encode_events, hash_bucket, log2_bucket


def test_the_room_agrees_with_the_data_contract():
    assert contract.EVENT_FIELDS == features.EVENT_FIELDS
    assert contract.POSITIVE_MASK == features.POSITIVE_MASK
    assert tuple(f"is_{name}" for name in features.LABELS) == tuple(contract.LABELS)


def test_hash_buckets_lie_in_range_and_only_unknown_is_zero():
    values = np.concatenate([[-1, 0, 1, 2**62], np.random.default_rng(0).integers(0, 2**40, 20_000)])
    bucket = hash_bucket(values, 64)
    assert bucket[0] == 0
    assert bucket[1:].min() == 1 and bucket[1:].max() == 63
    counts = np.bincount(bucket[4:], minlength=64)[1:]
    assert counts.max() < 1.3 * counts.mean()
    assert np.array_equal(bucket, hash_bucket(values, 64))


def test_consecutive_ids_spread():
    assert len(np.unique(hash_bucket(np.arange(512), 8192))) > 480


@pytest.mark.parametrize(
    "value, bucket", [(-1, 0), (0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (2**20 - 1, 20), (2**20, 21), (2**60, 31)]
)
def test_log2_buckets(value, bucket):
    assert log2_bucket(np.array([value]), 32)[0] == bucket


def _encode(**changes: int) -> dict[str, int]:
    """One event, and the instant it is looked at, with changes; the encoded fields by name."""
    event = {"item_id": 0, "author_id": 7, "tag": 3, "time_s": 1000, "play_ms": 500, "duration_ms": 1000, "label": 5}
    now = changes.pop("now_s", 1008)
    row = np.array([list((event | changes).values())])
    encoded = encode_events(row, np.array([now]), Catalogue(np.array([10, 0, 20])), 8192, 512)
    assert encoded.shape == (1, 7)
    return dict(zip(("item", "author", "tag", "gap", "play", "duration", "label"), encoded[0].tolist()))


def test_one_event():
    got = _encode()
    assert got["item"] == 1  # id 0 is an ordinary item
    assert got["gap"] == 4 and got["duration"] == 1 and got["label"] == 5
    assert _encode(item_id=-1)["item"] == _encode(item_id=99)["item"] == 3


@pytest.mark.parametrize(
    "field, value, name, bucket",
    [
        ("time_s", 0, "gap", 0),  # clock unknown
        ("time_s", 5000, "gap", 1),  # from the future: as if now
        ("time_s", 1008, "gap", 1),
        ("author_id", -1, "author", 0),
        ("tag", -1, "tag", 0),
        ("play_ms", -1, "play", 0),
        ("duration_ms", -1, "play", 0),
        ("duration_ms", 0, "play", 0),
        ("play_ms", 0, "play", 1),
        ("play_ms", 49, "play", 1),
        ("play_ms", 50, "play", 2),
        ("play_ms", 1049, "play", 9),
        ("play_ms", 1050, "play", 10),
        ("play_ms", 5000, "play", 13),
        ("play_ms", 10**9, "play", 13),
        ("duration_ms", -1, "duration", 0),
        ("duration_ms", 0, "duration", 0),
        ("duration_ms", 1, "duration", 1),
        ("duration_ms", 60_000, "duration", 6),
        ("duration_ms", 2**62, "duration", 23),
        ("label", 255, "label", 255),
        ("label", 256 + 2, "label", 2),
    ],
)
def test_bucket_edges(field, value, name, bucket):
    assert _encode(**{field: value})[name] == bucket


def test_no_events_at_all():
    empty = np.empty((0, 7), np.int64)
    assert encode_events(empty, np.empty(0, np.int64), Catalogue(np.array([1])), 8, 8).shape == (0, 7)


def test_catalogue_index_is_the_position_in_the_table():
    ids = np.array([50, 0, 7, 2**40, -3])
    catalogue = Catalogue(ids)
    assert len(catalogue) == 5
    assert catalogue.index(ids).tolist() == [0, 1, 2, 3, 4]
    assert catalogue.index(np.array([-1, 1, 2**41, -10])).tolist() == [5, 5, 5, 5]
    assert catalogue.index(np.array([[7], [8]])).tolist() == [[2], [5]]


def test_an_empty_catalogue_knows_nothing():
    assert Catalogue(np.empty(0, np.int64)).index(np.array([0, 1])).tolist() == [0, 0]


@pytest.mark.parametrize("ids, repeated", [([4, 9, 4], 4), ([9, 9], 9)])
def test_a_repeated_item_is_refused_by_id(ids, repeated):
    with pytest.raises(ValueError, match=f"item {repeated} stands twice"):
        Catalogue(np.array(ids))
