"""Model and optimiser state as safetensors beside a JSON configuration; nothing is pickled.

A model directory holds model.safetensors, config.json, optimizer.safetensors and metrics.json.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.features import Catalogue
from models.onerec.model import OneRec
from models.tokenizer.trie import Trie

LEVEL_COLUMNS = ("c0", "c1", "c2")
# Parameters with one row an item: they grow when the catalogue does.
ITEM_TABLES = {"item_residual.weight": 1, "item_bias_N": 0}  # value: rows behind the items (the unknown item's)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What the model needs of a tokenizer directory: the catalogue, its codes [N, 3] and the trie."""

    catalogue: Catalogue
    sid_NL: np.ndarray
    trie: Trie
    codebook_size: int

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Raises ValueError when SID table and trie do not belong together."""
        table = pq.read_table(directory / "sid_table.parquet")
        sid_NL = np.stack([table[c].to_numpy() for c in LEVEL_COLUMNS], 1).astype(np.int64)
        size = len(load_file(directory / "codebooks.safetensors")["codebook_0"])
        trie = Trie.load(directory / "trie.safetensors", size)
        found = trie.lookup(torch.from_numpy(sid_NL)).numpy()
        if len(trie.item) != len(sid_NL) or not np.array_equal(found, np.arange(len(sid_NL))):
            raise ValueError(
                f"{directory}: trie and SID table differ; they come from different tokenizers, do not mix releases"
            )
        return cls(Catalogue(table["item_id"].to_numpy()), sid_NL, trie, size)


def save_model(model: OneRec, out: Path) -> None:
    """Weights and configuration. Buffers that other files own (SID table) are not repeated."""
    state = {k: v.contiguous().cpu() for k, v in model.state_dict().items() if k != "sid_NL"}
    save_file(state, out / "model.safetensors")
    model.config.save(out / "config.json")


def load_model(directory: Path, tokenizer: Tokenizer) -> OneRec:
    """The model of a directory for this tokenizer; items added since it was trained get zero residuals.

    Raises ValueError when codebooks differ or the tokenizer has lost items: such a pair must not be mixed.
    """
    config = OneRecConfig.load(directory / "config.json")
    items = len(tokenizer.catalogue)
    if config.codebook_size != tokenizer.codebook_size or items < config.items:
        raise ValueError(
            f"{directory}: model was trained on {config.items} items x {config.codebook_size} codes, the tokenizer has "
            f"{items} x {tokenizer.codebook_size}; load the tokenizer of the same release"
        )
    state = {k: grow_items(k, v, items) for k, v in load_file(directory / "model.safetensors").items()}
    model = OneRec(dataclasses.replace(config, items=items), torch.from_numpy(tokenizer.sid_NL))
    state["sid_NL"] = model.sid_NL
    model.load_state_dict(state)
    return model


def grow_items(name: str, value: Tensor, items: int) -> Tensor:
    """A per-item parameter (or its optimiser moment) with zero rows inserted for items that are new."""
    table = next((t for t in ITEM_TABLES if name.endswith(t)), None)
    if table is None:
        return value
    behind = ITEM_TABLES[table]
    known = len(value) - behind
    if known == items:
        return value
    zeros = value.new_zeros(items - known, *value.shape[1:])
    return torch.cat([value[:known], zeros, value[known:]])


def save_optimizer(optimizer: torch.optim.Optimizer, names: dict[int, str], out: Path) -> None:
    """AdamW moments and step counts, keyed `<moment>/<parameter name>`."""
    tensors = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            for key, value in optimizer.state.get(p, {}).items():
                tensors[f"{key}/{names[id(p)]}"] = torch.as_tensor(value).contiguous().cpu()
    save_file(tensors, out / "optimizer.safetensors")


def load_optimizer(optimizer: torch.optim.Optimizer, names: dict[int, str], path: Path, items: int) -> None:
    """Restore what `save_optimizer` wrote; moments of new items start at zero."""
    saved = load_file(path)
    for group in optimizer.param_groups:
        for p in group["params"]:
            keys = ("step", "exp_avg", "exp_avg_sq")
            found = {k: saved[f"{k}/{names[id(p)]}"] for k in keys if f"{k}/{names[id(p)]}" in saved}
            if found:
                optimizer.state[p] = {
                    k: grow_items(names[id(p)], v, items) if k != "step" else v for k, v in found.items()
                }
