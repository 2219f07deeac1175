"""Swing: item-to-item similarity from pairs of users who agree (arXiv 2010.05525), on DuckDB or Spark.

s(i, j) = sum over u, v in U_i and U_j, u != v, of  w_u w_v / (alpha + |I_u and I_v|),
w_u = 1 / (|I_u| + user_offset) ** user_power

    python -c "from models.tokenizer.swing import swing, SwingConfig; print(swing('likes.parquet', SwingConfig()))"

Two parts, each the same on both engines:
1. `kept_sql` (one SQL text both dialects accept): distinct (user, item) pairs of users with `min_items` to `max_items`
   items; at most `max_users` users an item, chosen by a hash, are its anchors. As in the public implementations the cap
   binds on the anchor's side only, so scores are symmetric only while no item exceeds it.
2. `item_scores` (SciPy): for one item, from the baskets A of its n users, overlaps C = A A', weights
   W = w w' / (alpha + C) without the diagonal, and s(i, .) = column sums of A * (W A). A join over user pairs forms the
   same products as rows; here one item's n x n weights (8 MB at 1,000 users) are all there is at a time.

DuckDB: `processes` workers share the baskets, which lie in memory (in mapped files with more than one). Spark: baskets
travel to their items in a join, and blocks of items are scored by applyInPandas, so no machine holds all of them.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

if TYPE_CHECKING:
    import pandas
    from pyspark.sql import DataFrame, SparkSession

RESULT = pa.schema([("item_id", pa.int64()), ("neighbour_id", pa.int64()), ("score", pa.float64())])
_PRIME = 2_147_483_647


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwingConfig:
    """The paper's weights (offset 0, power 0.5, alpha 1) and the public implementations' caps."""

    alpha: float = 1.0
    user_offset: float = 0.0
    user_power: float = 0.5
    min_items: int = 10
    max_items: int = 1000
    max_users: int = 1000
    neighbours: int = 100

    def __post_init__(self) -> None:
        if not 2 <= self.min_items <= self.max_items:
            raise ValueError(
                f"users with {self.min_items} to {self.max_items} items: write 2 <= min_items <= max_items"
            )
        if self.max_users < 2 or self.neighbours < 1:
            raise ValueError(
                f"max_users {self.max_users} must be at least 2 and neighbours {self.neighbours} at least 1"
            )
        if self.alpha < 0 or self.user_offset < 0:
            raise ValueError(f"alpha {self.alpha} and user_offset {self.user_offset} must not be negative")


def kept_sql(source: str, config: SwingConfig) -> str:
    """(user_id, item_id, items, anchor) of the pairs that count; `source` is a relation with user_id and item_id.

    The order of an item's users is a linear congruence of both ids: it depends on nothing else, and products stay
    within 64 bits. Ids must not be negative.
    """
    mixed = f"((user_id % {_PRIME}) * 1103515245 + (item_id % {_PRIME}) * 1664525) % {_PRIME}"
    return f"""
WITH pairs AS (SELECT DISTINCT CAST(user_id AS BIGINT) AS user_id, CAST(item_id AS BIGINT) AS item_id FROM {source}),
sized AS (SELECT user_id, item_id, COUNT(*) OVER (PARTITION BY user_id) AS items FROM pairs),
kept AS (SELECT * FROM sized WHERE items BETWEEN {config.min_items} AND {config.max_items})
SELECT user_id, item_id, items,
    ROW_NUMBER() OVER (PARTITION BY item_id ORDER BY {mixed}, user_id) <= {config.max_users} AS anchor
FROM kept"""


def item_scores(
    baskets_UI: sp.csr_matrix, weight_U: np.ndarray, item: int, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one item with all others that share two of its users: (columns, scores), columns ascending.

    baskets_UI: 0/1 rows of the item's users (float32, sorted indices). weight_U: their weights.
    """
    users = baskets_UI.shape[0]
    column, inverse, count = np.unique(baskets_UI.indices, return_inverse=True, return_counts=True)
    shared = (count > 1) & (
        column != item
    )  # an item with one common user has no pair; the anchor itself is added below
    keep = shared[inverse]
    row = np.repeat(np.arange(users), np.diff(baskets_UI.indptr))[keep]
    local = (np.cumsum(shared) - 1)[inverse[keep]]
    if not len(local):
        return np.empty(0, np.int64), np.empty(0)
    ones = np.ones(len(local), np.float32)
    a = sp.csr_matrix((ones, (row, local)), shape=(users, int(shared.sum())))
    overlap = (a @ a.T).toarray() + 1.0  # every pair of these users has the anchor in common
    pair = (weight_U[:, None] * weight_U[None]) / (alpha + overlap)
    np.fill_diagonal(pair, 0.0)
    by_item = a.T.tocsr()
    reached = by_item @ pair  # [items, users]: what the item's users v give to user u
    of = np.repeat(np.arange(by_item.shape[0]), np.diff(by_item.indptr))
    scores = np.bincount(of, reached[of, by_item.indices], by_item.shape[0])
    return column[shared].astype(np.int64), scores


def swing(source: Any, config: SwingConfig, *, processes: int = 1, memory: str = "2GB") -> pa.Table:
    """RESULT rows, `config.neighbours` a item, best first (ties by neighbour id), sorted by item.

    source: a Parquet path or glob, or a pyarrow table, with user_id and item_id. memory: DuckDB's limit; it spills.
    """
    import duckdb

    with (
        tempfile.TemporaryDirectory() as spill,
        duckdb.connect(config={"memory_limit": memory, "threads": processes, "temp_directory": spill}) as con,
    ):
        if isinstance(source, pa.Table):
            con.register("interactions", source)
        else:
            con.from_parquet(str(source)).create_view("interactions")
        kept = con.sql(f"SELECT * FROM ({kept_sql('interactions', config)}) ORDER BY user_id, item_id").to_arrow_table()
    users, items = kept["user_id"].to_numpy(), kept["item_id"].to_numpy()
    size, anchor = kept["items"].to_numpy(), kept["anchor"].to_numpy()
    del kept
    if not len(users):
        return RESULT.empty_table()
    first = np.flatnonzero(np.diff(users, prepend=users[0] - 1))
    names = np.unique(items)
    column = np.empty(len(items), np.int32)
    for begin in range(0, len(items), 1 << 22):
        column[begin : begin + (1 << 22)] = np.searchsorted(names, items[begin : begin + (1 << 22)])
    del items
    baskets = sp.csr_matrix(
        (np.ones(len(column), np.float32), column, np.append(first, len(column))), shape=(len(first), len(names))
    )
    baskets.has_sorted_indices = True
    row = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(baskets.indptr))[anchor]
    order = np.argsort(column[anchor], kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(column[anchor], minlength=len(names)))])
    task = _Task(baskets, weights(size[first], config), row[order], starts, names, config)
    del users, size, anchor, column, order
    blocks = [(b, min(b + 500, len(names))) for b in range(0, len(names), 500)]
    if processes == 1:
        parts = [task(block) for block in blocks]
    else:
        # Spawned, with the arrays in files that all map: a fork of a process with threads can hang in a lock.
        with tempfile.TemporaryDirectory() as folder:
            task.save(folder)
            with multiprocessing.get_context("spawn").Pool(processes, _share, (folder, config)) as pool:
                parts = pool.map(_run, blocks, chunksize=1)
    return pa.Table.from_arrays([pa.array(np.concatenate(x)) for x in zip(*parts)], schema=RESULT)


def swing_spark(
    session: SparkSession, interactions: DataFrame, config: SwingConfig, *, block_items: int = 500
) -> DataFrame:
    """The same rows as `swing`, as a Spark frame (unordered). interactions: user_id and item_id."""
    from pyspark.sql import functions as F

    interactions.createOrReplaceTempView("swing_interactions")
    kept = session.sql(kept_sql("swing_interactions", config))
    baskets = kept.groupBy("user_id").agg(
        F.sort_array(F.collect_list("item_id")).alias("basket"), F.first("items").alias("items")
    )
    anchors = kept.where("anchor").select("user_id", F.col("item_id").alias("anchor_id"))
    joined = anchors.join(baskets, "user_id").withColumn("block", F.floor(F.col("anchor_id") / block_items))

    def score(block: pandas.DataFrame) -> pandas.DataFrame:
        return _score_block(block, config)

    schema = "item_id bigint, neighbour_id bigint, score double"
    return joined.groupBy("block").applyInPandas(score, schema)


def weights(basket_size: np.ndarray, config: SwingConfig) -> np.ndarray:
    """w_u of users with so many items."""
    return (basket_size + config.user_offset) ** -config.user_power


@dataclasses.dataclass
class _Task:
    """What the workers share: calling it with (first, last) scores that range of items."""

    baskets: sp.csr_matrix
    weight: np.ndarray
    anchor_user: np.ndarray
    starts: np.ndarray
    names: np.ndarray
    config: SwingConfig

    def __call__(self, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = []
        for item in range(*block):
            users = self.anchor_user[self.starts[item] : self.starts[item + 1]]
            if len(users) > 1:
                found.append(_best(self.baskets[users], self.weight[users], item, self.names, self.config))
        return _stack(found)

    def _arrays(self) -> dict[str, np.ndarray]:
        of = self.baskets
        baskets = {"data": of.data, "indices": of.indices, "indptr": of.indptr}
        rest = {"weight": self.weight, "anchor_user": self.anchor_user, "starts": self.starts, "names": self.names}
        return baskets | rest

    def save(self, folder: str) -> None:
        for name, array in self._arrays().items():
            np.save(f"{folder}/{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: str, config: SwingConfig) -> _Task:
        """What `save` wrote, mapped and not read: processes share the pages."""
        fields = ("data", "indices", "indptr", "weight", "anchor_user", "starts", "names")
        of = {name: np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in fields}
        shape = (len(of["indptr"]) - 1, len(of["names"]))
        baskets = sp.csr_matrix((of["data"], of["indices"], of["indptr"]), shape=shape, copy=False)
        return cls(baskets, of["weight"], of["anchor_user"], of["starts"], of["names"], config)


_task: _Task | None = None


def _share(folder: str, config: SwingConfig) -> None:
    global _task
    _task = _Task.load(folder, config)


def _run(block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert _task is not None
    return _task(block)


def _score_block(block: pandas.DataFrame, config: SwingConfig) -> pandas.DataFrame:
    """Rows (anchor_id, user_id, basket, items) of some items to their neighbours."""
    import pandas

    found = []
    for anchor, rows in block.sort_values(["anchor_id", "user_id"]).groupby("anchor_id"):
        names, column = np.unique(np.concatenate(rows["basket"].to_numpy()), return_inverse=True)
        starts = np.concatenate([[0], np.cumsum([len(b) for b in rows["basket"]])])
        a = sp.csr_matrix((np.ones(len(column), np.float32), column, starts), shape=(len(rows), len(names)))
        weight = weights(rows["items"].to_numpy(), config)
        found.append(_best(a, weight, int(np.searchsorted(names, anchor)), names, config))
    return pandas.DataFrame(dict(zip(RESULT.names, _stack(found))))


def _best(
    baskets: sp.csr_matrix, weight: np.ndarray, item: int, names: np.ndarray, config: SwingConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    column, score = item_scores(baskets, weight, item, config.alpha)
    order = np.lexsort((column, -score))[: config.neighbours]
    return np.full(len(order), names[item]), names[column[order]], score[order]


def _stack(found: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    a, b, c = (np.concatenate(x) for x in zip(*found))
    return a, b, c
