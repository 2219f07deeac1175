"""Swing: item-to-item similarity from pairs of users who agree, on DuckDB or Spark (swing_scores.py has the rule).

    python -c "from models.tokenizer.swing import swing, SwingConfig; print(swing('likes.parquet', SwingConfig()))"

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

from models.tokenizer.swing_scores import RESULT, SwingConfig, best, kept_sql, stack, weights

if TYPE_CHECKING:
    import pandas
    from pyspark.sql import DataFrame, SparkSession


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
                found.append(best(self.baskets[users], self.weight[users], item, self.names, self.config))
        return stack(found)

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
        found.append(best(a, weight, int(np.searchsorted(names, anchor)), names, config))
    return pandas.DataFrame(dict(zip(RESULT.names, stack(found))))
