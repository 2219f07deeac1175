"""The gRPC client: ask for the next items of a user.

RecommendClient("127.0.0.1:8001").recommend(user_id=42, k=10, deadline_s=1.0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tritonclient.grpc as triton

COLD_START, DEGRADED = 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Items best first, and where they come from. `feature_time_s` is unix seconds, 0 without features."""

    item_ids: list[int]
    scores: list[float]
    sids: list[tuple[int, ...]]
    release_id: str
    feature_time_s: int
    cold_start: bool
    degraded: bool


class RecommendClient:
    """A connection to one server; use it as a context manager or call `close`."""

    def __init__(self, url: str) -> None:
        self._client = triton.InferenceServerClient(url)

    def __enter__(self) -> RecommendClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def recommend(
        self,
        user_id: int,
        k: int,
        deadline_s: float = 5.0,
        *,
        exclude: Sequence[int] = (),
        now_s: int | None = None,
    ) -> Answer:
        """The best `k` unseen items of a user.

        `now_s` is the time of the request in unix seconds (default: the server's clock). Raises ValueError when the
        server refuses the request as wrong, TimeoutError after `deadline_s` seconds, ConnectionError when there is no
        server, RuntimeError when the server fails.
        """
        inputs = [_tensor("user_id", [user_id]), _tensor("k", [k])]
        if exclude:
            inputs.append(_tensor("exclude", exclude))
        if now_s is not None:
            inputs.append(_tensor("now_s", [now_s]))
        try:
            result = self._client.infer("recommend", inputs, client_timeout=deadline_s)
        except triton.InferenceServerException as error:
            raise _explained(error, user_id, deadline_s) from error
        flags = int(result.as_numpy("flags")[0])
        return Answer(
            item_ids=result.as_numpy("item_ids").tolist(),
            scores=result.as_numpy("scores").tolist(),
            sids=[tuple(row) for row in result.as_numpy("sids").tolist()],
            release_id=bytes(result.as_numpy("release")).decode(),
            feature_time_s=int(result.as_numpy("feature_time_s")[0]),
            cold_start=bool(flags & COLD_START),
            degraded=bool(flags & DEGRADED),
        )


def _tensor(name: str, values: Sequence[int]) -> triton.InferInput:
    array = np.asarray(values, np.int64)
    tensor = triton.InferInput(name, list(array.shape), "INT64")
    tensor.set_data_from_numpy(array)
    return tensor


def _explained(error: triton.InferenceServerException, user_id: int, deadline_s: float) -> Exception:
    status = str(error.status())
    if "DEADLINE_EXCEEDED" in status:
        return TimeoutError(f"no answer for user {user_id} within {deadline_s} s")
    if "UNAVAILABLE" in status:
        return ConnectionError(f"no server answers ({error.message()}); start one with `make up`")
    if "INVALID_ARGUMENT" in status:
        return ValueError(f"the server refused the request for user {user_id}: {error.message()}")
    return RuntimeError(f"the server failed for user {user_id}: {error.message()} ({status})")
