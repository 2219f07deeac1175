"""A release for items that came or went since the last one: the same model, without training.

    release_id = refresh_items(store=store, base="2022-05-05-0123456789ab", items=Path("items.parquet"))

New items get their IDs from the base release's frozen codebooks; SID table and trie are rebuilt, and model, reward
model and optimiser state are taken over: rows of new items start at zero, so a new item is known by its codes alone. No
known item changes its ID here, even if its content did: that waits for the day's tokenizer. Items of the catalogue
that the new items table does not hold are withdrawn: `recommend` returns none of them (serving/route.py). An exported
program of the base is left out, and the manifest says so under `export`: the release is served eagerly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.tokenizer.refresh import RefreshConfig, refresh_tokenizer
from models.training.checkpoint import Tokenizer, load_model
from releases.manifest import load_release
from releases.object_store import ObjectStore
from releases.publish import publish

TOKENIZER_FILES = ("tokenizer.json", "codebooks.safetensors", "sid_table.parquet", "trie.safetensors")
# An exported program holds the catalogue, and the gate it must pass needs a day's users, which no release holds.
REBUILT = ("tokenizer/", "items.parquet", "serving/")
EAGER = "the items changed since the program was exported; served eagerly until the next day's release"


def refresh_items(
    *, store: ObjectStore, base: str, items: Path, progress: Callable[[str], None] = print
) -> tuple[str, dict[str, Any]]:
    """Publish the release and return its id and {new, withdrawn}: counts. No channel moves.

    `items` is an items table (Parquet) of everything that may be served from now on. With nothing new and nothing
    withdrawn since `base`, the table's other columns unchanged, the base release itself is found. Raises ValueError for
    an unknown or damaged base, and for an items table without rows or columns.
    """
    folder, manifest = load_release(store, base)
    before = Tokenizer.load(folder / "tokenizer").catalogue
    table = _items(items)
    fresh = table.filter(pa.array(before.index(table["item_id"].to_numpy()) == len(before)))
    gone = int((~pc.is_in(pa.array(before.item_ids), table["item_id"].combine_chunks()).to_numpy(False)).sum())
    progress(f"{fresh.num_rows:,} new items, {gone:,} of {len(before):,} known ones withdrawn")
    with tempfile.TemporaryDirectory(prefix="onerec-items-") as scratch:
        tokenizer, metrics = folder / "tokenizer", dict(manifest.summaries.get("tokenizer", {}))
        if fresh.num_rows:
            tokenizer = Path(scratch) / "tokenizer"
            tokenizer.mkdir()
            pq.write_table(fresh, Path(scratch) / "fresh.parquet")
            report = refresh_tokenizer(
                items=Path(scratch) / "fresh.parquet",
                training_sets=[],
                previous=folder / "tokenizer",
                out=tokenizer,
                seed=manifest.seed,
                config=RefreshConfig(drift_limit=float("inf")),
                progress=progress,
            )
            metrics |= {name: value for name, value in report.items() if isinstance(value, int | float)}
            load_model(folder / "model", Tokenizer.load(tokenizer))  # raises if they did not belong together
        kept = {e.path: folder / e.path for e in manifest.files if not e.path.startswith(REBUILT)}
        files = kept | {f"tokenizer/{name}": tokenizer / name for name in TOKENIZER_FILES} | {"items.parquet": items}
        exported = any(e.path.startswith("serving/") for e in manifest.files)
        counts = {"new": fresh.num_rows, "withdrawn": gone}
        release_id = publish(
            store=store,
            day=manifest.day,
            source=manifest.source,
            files=files,
            summaries=manifest.summaries
            | {"tokenizer": metrics, "refreshed_items": counts}
            | ({"export": {"reason": EAGER}} if exported else {}),
            metrics=manifest.metrics,
            data=manifest.data,
            parents=[base],
            seed=manifest.seed,
            code_commit=manifest.code_commit,
            environment=manifest.environment,
        )
    progress(f"release {release_id}")
    return release_id, counts


def _items(file: Path) -> pa.Table:
    if not file.is_file():
        raise ValueError(f"{file} is no file; give the items table (Parquet) of what may be served from now on")
    table = pq.read_table(file)
    if not table.num_rows or "item_id" not in table.column_names:
        raise ValueError(f"{file} holds no items; a release without items serves nobody")
    return table
