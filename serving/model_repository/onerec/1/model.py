"""Triton model `onerec`: verifies the release in ONEREC_RELEASE_DIR, loads it, answers one user a request.

Tensors cross by DLPack: the backend's own NumPy path returns empty arrays under NumPy 2.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from models.inference import Recommender
from releases.manifest import verify

MAX_K = 1000


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        folder = Path(os.environ["ONEREC_RELEASE_DIR"])
        manifest = verify(folder)
        self.recommender = Recommender.load(folder)
        pb_utils.Logger.log_info(f"onerec: serving release {manifest.release_id}")

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            names = ("static", "short", "positive", "lifelong", "exclude", "params")
            static, short, positive, lifelong, exclude, params = (read(request, name) for name in names)
            now_s, k, beam = params.tolist()
            if not 1 <= k <= MAX_K:
                raise ValueError(f"k is {k}; ask for 1 to {MAX_K} items")
            if beam < 0:
                raise ValueError(f"beam is {beam}; give a width of at least k, or 0 to let the model choose")
            found = self.recommender.recommend(
                static=static.numpy(), short=short.numpy(), positive=positive.numpy(), lifelong=lifelong.numpy(),
                now_s=now_s, exclude=exclude.numpy(), k=k, beam=beam or max(2 * k, 128),
            )  # fmt: skip
            return pb_utils.InferenceResponse(
                [
                    write("item_ids", torch.as_tensor(found.item_ids, dtype=torch.int64)),
                    write("scores", torch.as_tensor(found.scores, dtype=torch.float32)),
                    write("sids", torch.as_tensor(found.sids, dtype=torch.int32).reshape(-1, 3)),
                ]
            )
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))


def read(request, name: str) -> torch.Tensor:
    """An input as a CPU tensor of its own (the request's memory is gone after the answer)."""
    return torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack()).clone()


def write(name: str, tensor: torch.Tensor):
    return pb_utils.Tensor.from_dlpack(name, torch.utils.dlpack.to_dlpack(tensor.contiguous()))
