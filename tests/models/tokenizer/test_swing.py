"""Swing: both engines against the formula, caps, degenerate logs."""

from __future__ import annotations

import itertools
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.tokenizer.swing import swing, swing_spark
from models.tokenizer.swing_scores import RESULT, SwingConfig

PAPER = SwingConfig(min_items=2)
OTHER = SwingConfig(alpha=0.5, user_offset=5.0, user_power=0.35, min_items=3, max_items=12, neighbours=4)


def _log(users: int = 60, items: int = 40, rows: int = 600, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    item = np.minimum(rng.zipf(1.4, rows) - 1, items - 1) * 7 + 3  # ids with gaps, some popular
    return pa.table({"user_id": pa.array(rng.integers(0, users, rows)), "item_id": pa.array(item)})


def _brute(table: pa.Table, config: SwingConfig) -> dict[tuple[int, int], float]:
    """The printed formula in float64, over all pairs of users. No cap on the users of an item."""
    baskets: dict[int, set[int]] = {}
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist()):
        baskets.setdefault(user, set()).add(item)
    baskets = {u: b for u, b in baskets.items() if config.min_items <= len(b) <= config.max_items}
    weight = {u: (len(b) + config.user_offset) ** -config.user_power for u, b in baskets.items()}
    scores: dict[tuple[int, int], float] = {}
    for u, v in itertools.permutations(baskets, 2):
        both = baskets[u] & baskets[v]
        for i, j in itertools.permutations(both, 2):
            scores[i, j] = scores.get((i, j), 0.0) + weight[u] * weight[v] / (config.alpha + len(both))
    return scores


def _best(scores: dict[tuple[int, int], float], neighbours: int) -> dict[int, list[tuple[int, float]]]:
    by_item: dict[int, list[tuple[int, float]]] = {}
    for (i, j), s in scores.items():
        by_item.setdefault(i, []).append((j, s))
    return {i: sorted(js, key=lambda x: (-round(x[1], 9), x[0]))[:neighbours] for i, js in by_item.items()}


def _check(found: pa.Table, table: pa.Table, config: SwingConfig) -> None:
    expected = _brute(table, config)
    best = _best(expected, config.neighbours)
    got: dict[int, list[tuple[int, float]]] = {}
    for i, j, s in zip(*(found[c].to_pylist() for c in RESULT.names)):
        assert s == pytest.approx(expected[i, j], rel=1e-9)
        got.setdefault(i, []).append((j, s))
    assert set(got) == set(best) and len(best) > 10
    for i, row in got.items():
        np.testing.assert_allclose([s for _, s in row], [s for _, s in best[i]], rtol=1e-9)


@pytest.mark.parametrize("config", [PAPER, OTHER])
@pytest.mark.parametrize("processes", [1, 2])
def test_duckdb_gives_the_formula(config, processes):
    table = _log()
    _check(swing(table, config, processes=processes), table, config)


@pytest.fixture(scope="module")
def spark():
    if shutil.which("java") is None:
        pytest.skip("needs java for Spark")
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "2").config("spark.driver.host", "127.0.0.1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = builder.config("spark.driver.memory", "1g").getOrCreate()
        yield session
        session.stop()


@pytest.mark.parametrize("config", [PAPER, OTHER, SwingConfig(min_items=2, max_users=7)])
def test_spark_gives_the_same_rows_as_duckdb(spark, config, tmp_path):
    table = _log(rows=500)
    pq.write_table(table, tmp_path / "log.parquet")
    frame = spark.read.parquet(str(tmp_path / "log.parquet"))
    found = swing_spark(spark, frame, config, block_items=50).toPandas()
    found = found.sort_values(["item_id", "score", "neighbour_id"], ascending=[True, False, True])
    here = swing(table, config)
    assert len(here) > 50
    assert found["item_id"].tolist() == here["item_id"].to_pylist()
    assert found["neighbour_id"].tolist() == here["neighbour_id"].to_pylist()
    np.testing.assert_array_equal(found["score"].to_numpy(), here["score"].to_numpy())


def test_repeats_count_once_and_ids_may_be_large():
    once = pa.table({"user_id": [1, 1, 2, 2, 3], "item_id": [2**40, 5, 5, 2**40, 5]})
    again = pa.concat_tables([once, once])
    assert swing(again, PAPER).equals(swing(once, PAPER))
    rows = swing(once, PAPER).to_pylist()  # user 3 has one item and falls out; w = 1 / sqrt 2 each, overlap 2
    assert [(r["item_id"], r["neighbour_id"]) for r in rows] == [(5, 2**40), (2**40, 5)]
    assert rows[0]["score"] == pytest.approx(2 * 0.5 / 3)


def test_the_cap_on_users_binds_on_the_anchors_side():
    """With 3 of 200 users kept its score is that of three users: 3 * 2 ordered pairs, same weight, overlap 2."""
    table = pa.table({"user_id": np.repeat(np.arange(200), 2), "item_id": np.tile([0, 1], 200)})
    rows = swing(table, SwingConfig(min_items=2, max_users=3)).to_pylist()
    assert [r["score"] for r in rows] == pytest.approx([6 * 0.5 / 3] * 2)


def test_anchors_are_a_spread_sample_not_the_smallest_ids():
    """Users 0..999 have item 0; those of the upper half share item 1 as well, those of the lower half item 2."""
    users = np.arange(1000)
    table = pa.table({"user_id": np.tile(users, 2), "item_id": np.concatenate([0 * users, 1 + (users < 500)])})
    scores = {
        r["neighbour_id"]: r["score"] for r in swing(table, SwingConfig(min_items=2, max_users=100)).to_pylist()[:2]
    }
    assert 0.4 < scores[1] / scores[2] < 2.5


def test_nothing_in_common_gives_no_rows():
    assert len(swing(pa.table({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 3, 4]}), PAPER)) == 0
    empty = pa.table({"user_id": pa.array([], pa.int64()), "item_id": pa.array([], pa.int64())})
    assert swing(empty, PAPER).schema == RESULT


@pytest.mark.parametrize(
    "wrong", [{"min_items": 1}, {"min_items": 20, "max_items": 10}, {"max_users": 1}, {"alpha": -1}]
)
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must|write"):
        SwingConfig(**wrong)
