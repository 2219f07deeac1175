"""Checkpoints inside a run: sharded, asynchronous, atomic, found again by digest. Nothing is pickled.

    saver = Checkpointer(folder, run="...")
    saver.save(step, tensors, {"curve": [...]})       # copies now, writes in a thread
    found = newest(folder, "...", say=print)          # the last whole one of this run, or None
    found.load(tensors)                               # in place, whatever the number of processes was

`step-00000120/` holds one safetensors file a process and meta.json, which names each file's sha256 and the rows of
each tensor it holds. A tensor is replicated (process 0 writes it) or a DTensor cut by rows (each process writes its
own). The files go into a hidden folder that process 0 renames once all are there: processes must share the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.tokenizer.sid_table import sid_digest
from models.training.checkpoint import Tokenizer
from models.training.pretrain_config import PretrainConfig
from models.training.row_groups import Index
from models.training.shards import rows_of

META = "meta.json"
PATIENCE_S = 600  # how long process 0 waits for the files of the others


class Checkpointer:
    """Writes checkpoints of one run into a folder and keeps the newest `keep`. Process 0 of `world` names them."""

    def __init__(self, folder: Path, run: str, *, rank: int = 0, world: int = 1, keep: int = 2) -> None:
        self.folder, self.run, self.rank, self.world, self.keep = folder, run, rank, world, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.stood_still = 0.0  # seconds the training loop gave to copying and to waiting for the one before
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            for left in folder.glob(".step-*"):  # of a killed process
                shutil.rmtree(left)
        if world > 1:
            torch.distributed.barrier()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Copy to main memory, then write in a thread. Raises what the write before this one raised."""
        begun = time.monotonic()
        self.wait()
        copies, table = {}, {}
        for name, tensor in tensors.items():
            local, start, rows, writes = rows_of(tensor)
            if writes:
                copies[name] = local.to("cpu", copy=True).contiguous()
                table[name] = [start, rows]
        about = json.dumps(state)  # now: the caller goes on changing it
        self._thread = threading.Thread(target=self._write, args=(step, copies, table, about), name="checkpoint")
        self._thread.start()
        self.stood_still += time.monotonic() - begun

    def wait(self) -> None:
        """Until the checkpoint under way is whole."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, tensors: dict[str, Tensor], table: dict[str, list[int]], about: str) -> None:
        try:
            stage = self.folder / f".step-{step:08d}"
            stage.mkdir(exist_ok=True)
            name = f"rank-{self.rank:05d}.safetensors"
            save_file(tensors, stage / name)
            _flush(stage / name)
            entry = {"sha256": sha256(stage / name), "tensors": table}
            _put(stage / f"rank-{self.rank:05d}.json", json.dumps(entry))
            if self.rank:
                return
            files, until = {}, time.monotonic() + PATIENCE_S
            for rank in range(self.world):
                done = stage / f"rank-{rank:05d}.json"
                while not done.exists():
                    if time.monotonic() > until:
                        raise TimeoutError(f"process {rank} has not written {done} within {PATIENCE_S} s; is it alive?")
                    time.sleep(0.02)
                files[f"rank-{rank:05d}.safetensors"] = json.loads(done.read_text())
            _put(stage / META, json.dumps({"step": step, "run": self.run, "files": files, "state": json.loads(about)}))
            target = self.folder / stage.name[1:]
            if target.exists():  # a bad one of the same step
                shutil.rmtree(target)
            os.rename(stage, target)
            _flush(self.folder)
            for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old)
        except BaseException as error:
            self._error = error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A whole checkpoint: its step and what the run stored beside the tensors."""

    path: Path
    step: int
    state: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill every tensor in place, each process reading only its rows. ValueError names what the file lacks."""
        parts: dict[str, list[tuple[int, str]]] = {}
        for file, entry in self.files.items():
            for name, (start, _) in entry["tensors"].items():
                parts.setdefault(name, []).append((start, file))
        if missing := sorted(set(tensors) - set(parts)):
            raise ValueError(f"{self.path}: {missing[:3]} are missing; remove the folder, its model was another one")
        opened = {file: safe_open(self.path / file, "pt") for file in self.files}
        for name, tensor in tensors.items():
            local, start, _, _ = rows_of(tensor)
            if not local.ndim:
                local.copy_(opened[parts[name][0][1]].get_tensor(name))
                continue
            for first, file in sorted(parts[name]):
                piece = opened[file].get_slice(name)
                a, b = max(start, first), min(start + len(local), first + piece.get_shape()[0])
                if a < b:
                    local[a - start : b - start] = piece[a - first : b - first]


def newest(folder: Path, run: str, say: Callable[[str], None]) -> Found | None:
    """The checkpoint of the highest step that is whole and of this run; others are passed over, and said to be."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            meta = json.loads((path / META).read_text())
            if meta["run"] != run:
                say(f"{path.name} is of another run (data, settings or model differ): not used")
                continue
            for file, entry in meta["files"].items():
                if sha256(path / file) != entry["sha256"]:
                    raise ValueError(f"{file} does not have its sha256")
            return Found(path=path, step=meta["step"], state=meta["state"], files=meta["files"])
        except (OSError, ValueError, KeyError) as error:
            say(f"{path.name} is damaged ({error}): the one before it is used")
    return None


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def run_digest(
    config: PretrainConfig,
    model: OneRecConfig,
    index: Index,
    tok: Tokenizer,
    previous: Path | None,
    seed: int,
    streams: int,
) -> str:
    """What a checkpoint must share with a run that goes on from it. How many processes share the streams is free."""
    facts = {
        "config": dataclasses.asdict(config) | {"accumulate": None, "replicas": None},
        "model": dataclasses.asdict(model),
        "data": [[g.path.parent.name, g.path.name, g.number, g.rows, g.targets, g.newest_s] for g in index.groups],
        "tokenizer": sid_digest(tok.sid_NL),
        "previous": previous and sha256(previous / "model.safetensors"),
        "seed": seed,
        "streams": streams,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _put(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.tmp")
    staged.write_text(text)
    _flush(staged)
    os.replace(staged, path)


def _flush(path: Path) -> None:
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)
