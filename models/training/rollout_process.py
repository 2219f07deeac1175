"""The rollout worker as a process of its own: parameters go to it, rollouts come back, both as safetensors files.

    worker = ProcessWorker(model=..., tokenizer=..., config=RolloutConfig(), seed=7)   # the trainer's side
    python -m models.training.rollout_process FOLDER                                   # what it starts

Messages are numbered files in one folder, each written beside its name and renamed, so that a reader never sees half of
one. The worker takes them in order: `N.push.safetensors` replaces the policy, `N.request.safetensors` holds users'
contexts and is answered by `N.reply.safetensors`. It ends when its trainer does. Another machine could take this place
through a shared folder; a message queue would carry the same files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.training.checkpoint import Tokenizer, load_model
from models.training.rollout import Rollout, RolloutConfig, RolloutWorker

POLL_S = 0.002
JOB, LOG, STOP = "job.json", "worker.log", "stop"


class ProcessWorker:
    """The trainer's side. `close()` ends the process; so does leaving a `with` block."""

    def __init__(self, *, model: Path, tokenizer: Path, config: RolloutConfig, seed: int, device: str = "cpu") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="onerec_rollout_"))
        job = {"model": str(model.resolve()), "tokenizer": str(tokenizer.resolve()), "seed": seed, "device": device}
        job |= {"config": dataclasses.asdict(config), "threads": torch.get_num_threads()}
        (self.folder / JOB).write_text(json.dumps(job))
        self.device, self._next = device, 0
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with (self.folder / LOG).open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "models.training.rollout_process", str(self.folder)],
                stdout=log, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def push(self, state: Mapping[str, Tensor], step: int) -> None:
        """Send the trainer's parameters, those after `step` optimiser steps. Returns at once."""
        self._send("push", {k: v.detach().cpu().contiguous() for k, v in state.items()}, {"step": str(step)})

    def request(self, context: dict[str, Tensor]) -> int:
        """Send users; the worker generates while the trainer goes on."""
        return self._send("request", {k: v.cpu().contiguous() for k, v in context.items()}, {})

    def collect(self, ticket: int, step: int) -> Rollout:
        """Wait for the rollout of a ticket. Raises RuntimeError with the end of the worker's log when it has died."""
        reply = self.folder / f"{ticket:08d}.reply.safetensors"
        while not reply.exists():
            if self._process.poll() is not None and not reply.exists():
                said = (self.folder / LOG).read_text()[-2000:]
                raise RuntimeError(f"the rollout worker ended with status {self._process.returncode}: {said}")
            time.sleep(POLL_S)
        with safe_open(reply, "pt") as file:
            pushed_at = int(file.metadata()["step"])
        tensors = load_file(reply, device=self.device)
        reply.unlink()
        return Rollout(**tensors, staleness=step - pushed_at)

    def close(self) -> None:
        """End the process and remove its folder."""
        (self.folder / STOP).touch()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> ProcessWorker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _send(self, kind: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> int:
        self._next += 1
        _write(self.folder / f"{self._next:08d}.{kind}.safetensors", tensors, metadata)
        return self._next


def serve(folder: Path) -> None:
    """The worker's loop: messages in order until the trainer stops it or is gone."""
    job = json.loads((folder / JOB).read_text())
    torch.set_num_threads(job["threads"])
    tok = Tokenizer.load(Path(job["tokenizer"]))
    model = load_model(Path(job["model"]), tok).to(job["device"])
    worker = RolloutWorker(model, tok, RolloutConfig(**job["config"]), job["seed"])
    number, trainer = 1, os.getppid()
    while not (folder / STOP).exists() and os.getppid() == trainer:
        push, request = (folder / f"{number:08d}.{kind}.safetensors" for kind in ("push", "request"))
        if push.exists():
            with safe_open(push, "pt") as file:
                step = int(file.metadata()["step"])
            worker.push(load_file(push, device=job["device"]), step)
            push.unlink()
        elif request.exists():
            reply = folder / f"{number:08d}.reply.safetensors"
            tensors = worker.generate(load_file(request))
            _write(reply, {k: v.cpu().contiguous() for k, v in tensors.items()}, {"step": str(worker.pushed_at)})
            request.unlink()
        else:
            time.sleep(POLL_S)
            continue
        number += 1


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A whole file or none. A user without events has tensors of no rows, which safetensors holds as well."""
    draft = path.with_suffix(".draft")
    save_file(tensors, draft, metadata=metadata)
    os.replace(draft, path)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
