"""The trie of a large catalogue: time and memory to build, save and load it, and lookups a second.

    python -m benchmarks.tokenizer.trie --items 10000000 --out benchmarks/tokenizer/trie.md
    python -m benchmarks.tokenizer.trie --items 100000000            # about 3 GiB; the table file 2 GB more on disk

The IDs are random tuples of 3 x 8192, which is the worst case for the trie: almost every item has a prefix of its own.
Memory is the growth of the process's resident set, at its peak, read by a thread.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.tokenizer.page import heading
from models.tokenizer.trie import Trie

K, PART, QUERIES = 8192, 1 << 18, 1_000_000


def write_table(path: Path, items: int, seed: int) -> None:
    """A SID table of distinct random tuples, a part at a time: consecutive keys at random distances, then a shuffle."""
    rng = np.random.default_rng(seed)
    gap = K**3 // items
    schema = pa.schema([("item_id", pa.int64()), *[(f"c{i}", pa.int32()) for i in range(3)]])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, items, PART):
            n = min(PART, items - start)
            # key = odd multiplier times index, modulo a power of two: a permutation, so no tuple comes twice
            index = np.arange(start, start + n, dtype=np.uint64) * np.uint64(gap) + rng.integers(
                gap, size=n, dtype=np.uint64
            )
            key = ((index * np.uint64(0x9E3779B97F4A7C15)) & np.uint64(K**3 - 1)).astype(np.int64)
            columns = [np.arange(start, start + n), *[(key // K**i % K).astype(np.int32) for i in (2, 1, 0)]]
            writer.write_table(pa.table(columns, schema=schema))


def measured(work: Callable[[], object]) -> tuple[object, float, float]:
    """Result, seconds, and GiB that the resident set grew by at its peak."""
    me, peak, stop = psutil.Process(), [0], threading.Event()
    before = me.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], me.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.process_time()
    result = work()
    took = time.process_time() - begun
    peak[0] = max(peak[0], me.memory_info().rss)
    stop.set(), thread.join()
    return result, took, (peak[0] - before) / 2**30


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--items", type=int, default=10_000_000)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        table, file = Path(folder) / "sid_table.parquet", Path(folder) / "trie.safetensors"
        write_table(table, args.items, 0)
        built, took, grew = measured(lambda: Trie.from_table(table, K))
        assert isinstance(built, Trie)
        each = f"{grew * 2**30 / args.items:.1f} bytes an item"
        lines.append(f"| build from the table on disk | {took:.1f} | {grew:.2f} ({each}) |")
        arrays = [*built.first, *built.code, built.key, built.item]
        size = sum(a.numel() * a.element_size() for a in arrays)
        lines.append(f"| the trie | | {size / 2**30:.2f} ({size / args.items:.1f} bytes an item) |")
        _, took, _ = measured(lambda trie=built: trie.save(file))
        lines.append(f"| save | {took:.1f} | file {file.stat().st_size / 2**30:.2f} |")
        rng = np.random.default_rng(1)
        legal = built.codes(torch.from_numpy(rng.integers(len(built.item), size=QUERIES)))
        assert bool((built.lookup(legal) >= 0).all())
        del built, arrays
        trie, took, grew = measured(lambda: Trie.load(file, K))
        assert isinstance(trie, Trie)
        lines.append(f"| load (memory map) | {took:.3f} | {grew:.2f} |")
        free = torch.from_numpy(rng.integers(K, size=(QUERIES, 3)))
        for name, work in (
            ("1,000,000 lookups of legal tuples", lambda: trie.lookup(legal)),
            ("1,000,000 lookups of random tuples", lambda: trie.lookup(free)),
            ("1,000,000 prefixes of two codes to nodes", lambda: trie.node(free[:, :2])),
        ):
            work()
            _, took, _ = measured(work)
            lines.append(f"| {name} | {took:.2f} | |")
    text = heading("The trie of a large catalogue", f"python -m benchmarks.tokenizer.trie --items {args.items}")
    text += f"{args.items:,} items, 3 x {K} codes, one thread; CPU time, since other work ran on the machine.\n\n"
    text += "| what | CPU seconds | GiB |\n|---|---|---|\n" + "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
