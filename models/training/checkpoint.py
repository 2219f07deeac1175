"""Model and optimiser state as safetensors beside a JSON configuration; nothing is pickled.

A model directory holds model.safetensors, config.json, optimizer.safetensors and metrics.json. The weights name the
SID table they were trained with by its digest: codes mean nothing to a model of another tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.features import Catalogue
from models.onerec.model import OneRec
from models.tokenizer.carry import CARRY, Carry, carry_code_embeddings
from models.tokenizer.sid_table import LEVEL_COLUMNS, sid_digest
from models.tokenizer.trie import Trie
from models.training.shards import fill, whole

# Tensors with one row an item: they grow when the catalogue does. Value: rows behind the items (the unknown item's).
ITEM_TABLES = {"item_residual.weight": 1, "bag.weight": 1, "item_bias_N": 0, "item_category_N": 1}
SID_DIGEST = "sid_sha256"  # key of the safetensors metadata
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
Config = TypeVar("Config", bound=Any)
Restored = TypeVar("Restored", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What the model needs of a tokenizer directory: the catalogue, its codes [N, 3] and the trie."""

    catalogue: Catalogue
    sid_NL: np.ndarray
    trie: Trie
    codebook_size: int
    carry: Carry | None = None  # on a day on which known items changed their IDs

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
        return cls(Catalogue(table["item_id"].to_numpy()), sid_NL, trie, size, Carry.load(directory / CARRY))

    def carries(self, weights: Path) -> Carry | None:
        """The carry, if these weights are of the tokenizer that it starts from."""
        with safe_open(weights, "pt") as file:
            trained = (file.metadata() or {}).get(SID_DIGEST)
        return self.carry if self.carry is not None and trained == self.carry.parent else None


def save_weights(model: torch.nn.Module, path: Path, *, write: bool = True) -> None:
    """The state of a model with the digest of its SID table, whose rows other files own and which is not repeated.

    Every process of a sharded model must call it, and one of them with `write`.
    """
    state = {}
    for name, value in model.state_dict().items():
        if name != "sid_NL":
            tensor = whole(value)  # one at a time: a device need not hold the whole model
            if write:
                state[name] = tensor.contiguous().cpu()
    if not write:
        return
    known = model.get_buffer("sid_NL")[:-1].cpu().numpy()  # the last row is the unknown item's
    save_file(state, path, metadata={SID_DIGEST: sid_digest(known)})


def load_weights(path: Path, tokenizer: Tokenizer, items: int) -> dict[str, Tensor]:
    """What `save_weights` wrote when the catalogue had `items` items, grown to the tokenizer's catalogue, and carried
    to its codes where known items changed their IDs since.

    Raises ValueError when the tokenizer's first `items` rows are not those the weights were trained with.
    """
    state = load_file(path)
    if carry := tokenizer.carries(path):
        state = carry_code_embeddings(state, carry.source)
        return {k: grow_items(k, v, len(tokenizer.catalogue)) for k, v in state.items()}
    with safe_open(path, "pt") as file:
        trained = (file.metadata() or {}).get(SID_DIGEST)
    if trained != (own := sid_digest(tokenizer.sid_NL[:items])):
        raise ValueError(
            f"{path} belongs to another tokenizer: it was trained with SID table {trained or '(not named)'}, the first "
            f"{items} rows of this tokenizer are {own}; load both from one release"
        )
    return {k: grow_items(k, v, len(tokenizer.catalogue)) for k, v in state.items()}


def save_model(model: OneRec, out: Path, *, write: bool = True) -> None:
    """Weights and configuration; `write` as in `save_weights`."""
    save_weights(model, out / "model.safetensors", write=write)
    if write:
        model.config.save(out / "config.json")


def load_model(directory: Path, tokenizer: Tokenizer) -> OneRec:
    """The model of a directory for this tokenizer. Raises ValueError as `restore` does: such a pair is never mixed."""
    return restore(directory / "model.safetensors", OneRecConfig.load(directory / "config.json"), tokenizer, OneRec)


def restore(
    weights: Path, config: Config, tokenizer: Tokenizer, build: Callable[[Config, Tensor], Restored]
) -> Restored:
    """`build(config, sid_NL)` with these weights; items added since they were trained get zero residuals.

    config has the fields `items` and `codebook_size`, which are the tokenizer's in what is built. Raises ValueError
    when codebooks or SID tables differ, or the tokenizer has lost items.
    """
    items = len(tokenizer.catalogue)
    carried = tokenizer.carries(weights) is not None
    if (config.codebook_size != tokenizer.codebook_size and not carried) or items < config.items:
        raise ValueError(
            f"{weights} belongs to another tokenizer: it was trained on {config.items} items x {config.codebook_size} "
            f"codes, the tokenizer has {items} x {tokenizer.codebook_size}; load both from the same release"
        )
    state = load_weights(weights, tokenizer, config.items)
    config = dataclasses.replace(config, items=items, codebook_size=tokenizer.codebook_size)
    model = build(config, torch.from_numpy(tokenizer.sid_NL))
    state["sid_NL"] = model.get_buffer("sid_NL")
    model.load_state_dict(state)
    return model


def grow_items(name: str, value: Tensor, items: int) -> Tensor:
    """A per-item parameter (or its optimiser moment) with zero rows inserted for items that are new."""
    table = next((t for t in ITEM_TABLES if name.endswith(t)), None)
    if table is None or not value.ndim:  # a step count is one number whatever it belongs to
        return value
    behind = ITEM_TABLES[table]
    known = len(value) - behind
    if known == items:
        return value
    zeros = value.new_zeros(items - known, *value.shape[1:])
    return torch.cat([value[:known], zeros, value[known:]])


def start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the state that AdamW would give it at its first gradient: zeros."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            zeros = {k: torch.zeros_like(p) for k in MOMENTS[1:]}
            optimizer.state[p] = {"step": torch.zeros((), device=p.device), **zeros}


def moments(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """AdamW's state of every parameter, keyed `<moment>/<parameter name>`; the very tensors, not copies."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {f"{key}/{names[id(p)]}": optimizer.state[p][key] for p in params for key in MOMENTS}


def save_optimizer(optimizer: torch.optim.Optimizer, names: dict[int, str], out: Path, *, write: bool = True) -> None:
    """AdamW moments and step counts of every parameter, keyed `<moment>/<parameter name>`.

    `write` as in `save_weights`. A parameter that never had a gradient is written as AdamW would start it: zeros.
    """
    tensors = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p) or {"step": torch.zeros(()), **{k: torch.zeros_like(p) for k in MOMENTS[1:]}}
            for key in MOMENTS:
                tensor = whole(torch.as_tensor(state[key]).detach())
                if write:
                    tensors[f"{key}/{names[id(p)]}"] = tensor.contiguous().cpu()
    if write:
        save_file(tensors, out / "optimizer.safetensors")


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[int, str], path: Path, items: int, carry: Carry | None = None
) -> None:
    """Restore what `save_optimizer` wrote, on each parameter's device; moments of new items start at zero, those of
    codes follow the `carry` as the weights do.

    Raises ValueError naming the moments that the file lacks.
    """
    saved = load_file(path) if carry is None else carry_code_embeddings(load_file(path), carry.source)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if missing := sorted({f"{k}/{names[id(p)]}" for p in params for k in MOMENTS} - saved.keys()):
        raise ValueError(f"{path}: {missing} are missing; the file does not belong to this model, load one release")
    start_optimizer(optimizer)
    for p in params:
        for key in MOMENTS:
            fill(optimizer.state[p][key], grow_items(names[id(p)], saved[f"{key}/{names[id(p)]}"], items))
