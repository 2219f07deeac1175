"""Triton model `onerec-<release>`: verifies the release it is configured with, loads it, answers batches of contexts.

Tensors cross by DLPack: the backend's own NumPy path returns empty arrays under NumPy 2.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import traceback
from collections import defaultdict
from pathlib import Path

from serving.priority import at_low_priority

at_low_priority(importlib.import_module, "serving.export.program")  # torch and all that: seconds of work

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from models.onerec.config import OneRecConfig
from releases.manifest import verify
from serving.config import ServingConfig
from serving.context import Encoder
from serving.dlpack import read, write
from serving.export.program import Program

INPUTS = ("static", "short", "positive", "lifelong", "lengths")


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        folder = Path(json.loads(args["model_config"])["parameters"]["release"]["string_value"])
        settings = json.loads(Path(os.environ["ONEREC_SETTINGS"]).read_text())
        self.config = ServingConfig(**settings["config"])
        torch.set_num_threads(self.config.threads)
        if args["model_instance_kind"] == "GPU":
            self.program = self._ready(folder, f"cuda:{args['model_instance_device_id']}")
        else:
            self.program = at_low_priority(self._ready, folder, "cpu")
        self.max_beam = min(self.config.max_beam, self.program.max_beam)
        self.max_batch = min(self.config.max_batch, self.program.signature.max_batch)
        self.encoder = Encoder(OneRecConfig.load(folder / "model" / "config.json"), self.program.tokenizer.catalogue)
        gc.collect()
        gc.freeze()  # no later collection walks what stays
        pb_utils.Logger.log_info(f"onerec: release {folder.name}, {self.program.describe()}")

    def _ready(self, folder: Path, device: str) -> Program:
        """Loaded, and every shape run once."""
        torch.set_num_threads(self.config.threads)  # of this thread
        program = self._load(folder, device)
        program.warm_up()
        return program

    def _load(self, folder: Path, device: str) -> Program:
        """The release's program, after every byte of it was checked."""
        verify(folder)
        return Program.load(folder, device)

    def execute(self, requests: list) -> list:
        """Requests of the same beam and order are one run of the model."""
        responses: list = [None] * len(requests)
        groups: dict[tuple[int, int], list[tuple[int, dict, int]]] = defaultdict(list)
        for i, request in enumerate(requests):
            try:
                tensors, (k, beam, rerank) = self._checked(request)
                groups[beam, rerank].append((i, tensors, k))
            except ValueError as error:
                responses[i] = _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception:  # one request must never take its batch with it
                responses[i] = _failed()
        for (beam, rerank), members in groups.items():
            try:
                for i, response in self._run(beam, bool(rerank), members):
                    responses[i] = response
            except ValueError as error:
                for i, *_ in members:
                    responses[i] = _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception:
                # Left to the backend, the answer would carry the stack trace with its paths to the client.
                for i, *_ in members:
                    responses[i] = _failed()
        return responses

    def _checked(self, request) -> tuple[dict, tuple[int, int, int]]:
        tensors = {name: read(request, name) for name in INPUTS}
        params = read(request, "params").numpy()
        if len(np.unique(params, axis=0)) != 1:
            raise ValueError("all users of one request must have the same params; send them in requests of their own")
        k, beam, rerank = params[0].tolist()
        if not 1 <= k <= self.config.max_k:
            raise ValueError(f"k is {k}; ask for 1 to {self.config.max_k} items")
        if not k <= beam <= self.config.max_beam:
            raise ValueError(f"beam is {beam}; it must lie in {k} (k) to {self.config.max_beam}")
        if rerank not in (0, 1):
            raise ValueError(f"rerank is {rerank}; give 0 (the model's order) or 1 (order by P-Score)")
        self.encoder.check({name: t.numpy() for name, t in tensors.items()})
        return tensors, (k, beam, rerank)

    def _run(self, beam: int, rerank: bool, members: list[tuple[int, dict, int]]):
        sizes = [len(tensors["static"]) for _, tensors, _ in members]
        batch = {name: torch.cat([tensors[name] for _, tensors, _ in members]) for name in INPUTS}
        width = min(beam, self.max_beam)
        most = beam if rerank else max(k for *_, k in members)
        # Never more users than configured and exported for: a request may bring several users, so groups are cut.
        parts = [
            self._answered({n: t[at : at + self.max_batch] for n, t in batch.items()}, width, most, rerank)
            for at in range(0, sum(sizes), self.max_batch)
        ]
        items, scores, sids = (np.concatenate(column) for column in zip(*parts))
        at = 0
        for (i, _, k), size in zip(members, sizes):
            rows = slice(at, at + size)
            at += size
            yield (
                i,
                pb_utils.InferenceResponse(
                    [
                        write("item_ids", items[rows, :k]),
                        write("scores", scores[rows, :k]),
                        write("sids", sids[rows, :k]),
                    ]
                ),
            )

    def _answered(self, batch: dict, width: int, most: int, rerank: bool):
        items, scores, sids = (t.cpu().numpy() for t in self.program(batch, width, min(most, width)))
        if rerank:
            scores = self.program.reward(batch, items)
            order = np.argsort(-scores, axis=1, kind="stable")
            items, scores = (np.take_along_axis(a, order, 1) for a in (items, scores))
            sids = np.take_along_axis(sids, order[..., None], 1)
        return items, scores, sids


def _failed():
    """Called where an exception is handled."""
    pb_utils.Logger.log_error(f"onerec: {traceback.format_exc()}")
    return _refusal("the model failed; the server's log has the reason", pb_utils.TritonError.INTERNAL)


def _refusal(message: str, code: int):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
