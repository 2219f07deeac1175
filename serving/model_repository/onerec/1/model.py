"""Triton model `onerec`: verifies the release in ONEREC_RELEASE_DIR, loads it, answers one user a request.

ONEREC_SELECT=p_score lets the release's reward model choose from the beam; without it the model's own order stands.

Tensors cross by DLPack: the backend's own NumPy path returns empty arrays under NumPy 2.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from models.inference import MAX_BEAM, Recommender
from releases.manifest import verify

MIN_BEAM = 128


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        folder = Path(os.environ["ONEREC_RELEASE_DIR"])
        manifest = verify(folder)
        select = os.environ.get("ONEREC_SELECT", "")
        self.recommender = Recommender.load(folder, select)
        order = "P-Score chooses from the beam" if select else "the model's own order"
        pb_utils.Logger.log_info(f"onerec: serving release {manifest.release_id}, {order}")

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            names = ("static", "short", "positive", "lifelong", "exclude", "params")
            static, short, positive, lifelong, exclude, params = (read(request, name) for name in names)
            now_s, k, beam = params.tolist()
            if not 1 <= k <= MAX_BEAM:
                raise ValueError(f"k is {k}; ask for 1 to {MAX_BEAM} items")
            if beam < 0:
                raise ValueError(f"beam is {beam}; give a width of at least k, or 0 to let the model choose")
            found = self.recommender.recommend(
                static=static.numpy(), short=short.numpy(), positive=positive.numpy(), lifelong=lifelong.numpy(),
                now_s=now_s, exclude=exclude.numpy(), k=k, beam=beam or min(max(2 * k, MIN_BEAM), MAX_BEAM),
            )  # fmt: skip
            return pb_utils.InferenceResponse(
                [
                    write("item_ids", found.item_ids.astype(np.int64)),
                    write("scores", found.scores.astype(np.float32)),
                    write("sids", found.sids.astype(np.int32)),
                ]
            )
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        except Exception:
            # Left to the backend, the answer would carry the stack trace with its paths to the client.
            pb_utils.Logger.log_error(f"onerec: {traceback.format_exc()}")
            error = pb_utils.TritonError(
                "the model failed; the server's log has the reason", pb_utils.TritonError.INTERNAL
            )
            return pb_utils.InferenceResponse(error=error)


def read(request, name: str) -> torch.Tensor:
    """An input as a CPU tensor of its own (the request's memory is gone after the answer)."""
    return torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack()).clone()


def write(name: str, array: np.ndarray):
    # The backend demands the strides of C order even of an empty tensor, where NumPy's are 0: torch's copy has them.
    # torch also exports it, because the backend renames the capsule in a way that NumPy's destructor stumbles over.
    tensor = torch.from_numpy(array.copy()).clone(memory_format=torch.contiguous_format)
    return pb_utils.Tensor.from_dlpack(name, torch.utils.dlpack.to_dlpack(tensor))
