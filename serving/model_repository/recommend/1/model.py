"""Triton model `recommend`: a user id in, unseen items out. Features come from Feast, items from the model `onerec`.

A user whom the feature store does not know is answered all the same (flag: cold start). So is everybody when the store
fails (flag: degraded); then nothing is known of what they have seen. Bad requests are refused with INVALID_ARG and a
sentence; whatever else goes wrong is written to the server's log and told to the client without its details.
Tensors cross by DLPack: the backend's own NumPy path returns empty arrays under NumPy 2.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from feature_repo.online import FeatureStoreError, OnlineFeatures, UserFeatures
from feature_repo.services import SERVICE
from models.inference import MAX_BEAM
from models.onerec.config import OneRecConfig
from models.onerec.features import NUM_FIELDS
from releases.manifest import MANIFEST, Manifest

COLD_START, DEGRADED = 1, 2
MAX_K = MAX_BEAM
MAX_EXCLUDE = 10_000
ITEM_OUTPUTS = ["item_ids", "scores", "sids"]


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        folder = Path(os.environ["ONEREC_RELEASE_DIR"])
        # `onerec` verifies every file of the release; here only what the features must fit is read.
        manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes(), f"{folder}/{MANIFEST}")
        if (service := manifest.summaries.get("feature_service", {}).get("name")) != SERVICE:
            raise ValueError(
                f"release {manifest.release_id} wants feature service {service}, this server reads {SERVICE};"
                " do not mix them: serve the release with the code it was made by"
            )
        self.release = np.frombuffer(manifest.release_id.encode(), np.uint8)
        self.static_features = OneRecConfig.load(folder / "model" / "config.json").static_features
        store = Path(os.environ["ONEREC_FEATURES_DIR"]), Path(os.environ["ONEREC_FEATURE_STORE_DIR"])
        self.features = OnlineFeatures(*store)
        self.features.open()
        pb_utils.Logger.log_info(f"recommend: release {manifest.release_id}, feature service {SERVICE}")

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            user_id, k, exclude, now_s = _checked(request)
            features, flags = self._read(user_id)
            static = features.static if len(features.static) else np.zeros(self.static_features, np.int64)
            params = np.array([now_s, k, 0], np.int64)  # 0: the model chooses the beam
            found = _call_onerec(
                static=static,
                short=features.short,
                positive=features.positive,
                lifelong=features.lifelong,
                exclude=np.union1d(features.seen, exclude),
                params=params,
            )
            return pb_utils.InferenceResponse(
                [
                    *(_write(name, array) for name, array in found.items()),
                    _write("release", self.release),
                    _write("feature_time_s", np.array([features.feature_time_s], np.int64)),
                    _write("flags", np.array([flags], np.int32)),
                ]
            )
        except ValueError as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception:
            pb_utils.Logger.log_error(f"recommend: {traceback.format_exc()}")
            return _refusal("the model failed; the server's log has the reason", pb_utils.TritonError.INTERNAL)

    def _read(self, user_id: int) -> tuple[UserFeatures, int]:
        """The user's features and the flags of the answer. Never fails."""
        try:
            features = self.features.read(user_id)
            if len(features.static) not in (0, self.static_features):
                raise FeatureStoreError(
                    f"user {user_id} has {len(features.static)} static codes, the release wants {self.static_features}"
                )
            return features, 0 if features.known else COLD_START
        except FeatureStoreError as error:
            pb_utils.Logger.log_error(f"recommend: answering without features: {error}")
            none, events = np.zeros(0, np.int64), np.zeros((0, NUM_FIELDS), np.int64)
            empty = dict.fromkeys(("short", "positive", "lifelong"), events)
            return UserFeatures(static=none, seen=none, feature_time_s=0, known=False, **empty), DEGRADED


def _checked(request) -> tuple[int, int, np.ndarray, int]:
    """user_id, k, exclude and now_s of a request; ValueError for what a client must mend."""
    user_id, k = (int(_read_input(request, name)[0]) for name in ("user_id", "k"))
    exclude, now = _read_input(request, "exclude"), _read_input(request, "now_s")
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k is {k}; ask for 1 to {MAX_K} items")
    if exclude is not None and len(exclude) > MAX_EXCLUDE:
        raise ValueError(f"exclude has {len(exclude)} items; give at most {MAX_EXCLUDE}")
    now_s = int(time.time()) if now is None else int(now[0])
    if now_s < 0:
        raise ValueError(f"now_s is {now_s}; give the unix time of the request in seconds")
    return user_id, k, np.zeros(0, np.int64) if exclude is None else exclude, now_s


def _call_onerec(**inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of the model `onerec` on the same server. Raises RuntimeError when it does not answer."""
    tensors = [_write(name, value) for name, value in inputs.items()]
    request = pb_utils.InferenceRequest(model_name="onerec", requested_output_names=ITEM_OUTPUTS, inputs=tensors)
    response = request.exec()
    if response.has_error():
        raise RuntimeError(f"onerec: {response.error().message()}")
    found = {name: pb_utils.get_output_tensor_by_name(response, name) for name in ITEM_OUTPUTS}
    return {name: _array(tensor) for name, tensor in found.items()}


def _read_input(request, name: str) -> np.ndarray | None:
    """An input, None where it was not given."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else _array(tensor)


def _array(tensor) -> np.ndarray:
    """A copy: the backend's memory is gone after the answer."""
    return torch.from_dlpack(tensor.to_dlpack()).clone().numpy()


def _write(name: str, array: np.ndarray):
    # The backend demands the strides of C order even of an empty tensor, where NumPy's are 0: torch's copy has them.
    # torch also exports it, because the backend renames the capsule in a way that NumPy's destructor stumbles over.
    tensor = torch.from_numpy(array.copy()).clone(memory_format=torch.contiguous_format)
    return pb_utils.Tensor.from_dlpack(name, torch.utils.dlpack.to_dlpack(tensor))


def _refusal(message: str, code: int):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
