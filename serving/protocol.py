"""What the sync and the asyncio client share: the tensors of a request, the answer, and errors that say what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton

COLD_START, DEGRADED, STALE = 1, 2, 4
EVENT_FIELDS = 7


class OverloadedError(ConnectionError):
    """The server sheds load. Come back later; never repeated by the client itself, that would add to the load."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Items best first, and where they come from. `feature_time_s` is unix seconds, 0 without features.

    cold_start: the store does not know the user. degraded: the feature store did not answer; stale: but the server
    still had the user's features.
    """

    item_ids: list[int]
    scores: list[float]
    sids: list[tuple[int, ...]]
    release_id: str
    feature_time_s: int
    cold_start: bool
    degraded: bool
    stale: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """One request. exclude, exclude_authors: ids not to return. live: events [n, 7] in the fields of the feature
    service, oldest first, that the store may not know yet. max_age_s: only items uploaded within so many seconds.
    now_s: unix time of the request (None or 0: the server's clock). beam: width of the search (None or 0: the server
    chooses).
    rerank: order by the release's reward model.
    """

    user_id: int
    k: int
    exclude: Sequence[int] = ()
    exclude_authors: Sequence[int] = ()
    live: Sequence[Sequence[int]] = ()
    max_age_s: int | None = None
    now_s: int | None = None
    beam: int | None = None
    rerank: bool = False

    def inputs(self) -> list[triton.InferInput]:
        """All tensors, also those that say nothing: Triton only batches requests that bring the same ones.

        Raises ValueError for what is no int64, and for events without seven fields.
        """
        if any(len(event) != EVENT_FIELDS for event in self.live):
            raise ValueError(f"a live event has {EVENT_FIELDS} fields; see models/onerec/features.py")
        live = np.asarray(self.live, object).reshape(-1, EVENT_FIELDS)
        return [
            _tensor("user_id", [self.user_id]),
            _tensor("k", [self.k], np.int32),
            _tensor("exclude", self.exclude),
            _tensor("exclude_authors", self.exclude_authors),
            _tensor("live", live),
            _tensor("max_age_s", [self.max_age_s or 0]),
            _tensor("now_s", [self.now_s or 0]),
            _tensor("beam", [self.beam or 0], np.int32),
            _tensor("rerank", [int(self.rerank)], np.int32),
        ]


def answer(result: Any) -> Answer:
    flags = int(result.as_numpy("flags")[0, 0])
    return Answer(
        item_ids=result.as_numpy("item_ids")[0].tolist(),
        scores=result.as_numpy("scores")[0].tolist(),
        sids=[tuple(row) for row in result.as_numpy("sids")[0].tolist()],
        release_id=result.as_numpy("release")[0].tobytes().decode(),
        feature_time_s=int(result.as_numpy("feature_time_s")[0, 0]),
        cold_start=bool(flags & COLD_START),
        degraded=bool(flags & DEGRADED),
        stale=bool(flags & STALE),
    )


def explained(error: Exception, user_id: int, deadline_s: float) -> Exception:
    """The error to raise: ValueError, TimeoutError, OverloadedError, ConnectionError or RuntimeError."""
    if not isinstance(error, triton.InferenceServerException):
        return error
    status, message = str(error.status()), error.message()
    if "DEADLINE_EXCEEDED" in status:
        return TimeoutError(f"no answer for user {user_id} within {deadline_s:g} s")
    if "UNAVAILABLE" in status:
        if any(word in message.lower() for word in ("overloaded", "queue size", "timeout expired")):
            return OverloadedError(f"the server sheds load ({message})")
        return ConnectionError(f"no server answers ({message}); start one with `make up`")
    if "INVALID_ARGUMENT" in status:
        return ValueError(f"the server refused the request for user {user_id}: {message}")
    return RuntimeError(f"the server failed for user {user_id}: {message} ({status})")


def repeatable(error: Exception) -> bool:
    """A request reads and changes nothing, so it may be repeated when no server was reached. Nothing else may."""
    return isinstance(error, ConnectionError) and not isinstance(error, OverloadedError)


def _tensor(name: str, values: Sequence | np.ndarray, dtype: type = np.int64) -> triton.InferInput:
    bounds = np.iinfo(dtype)
    flat = np.asarray(values, object).ravel()
    if any(not bounds.min <= int(value) <= bounds.max for value in flat):
        raise ValueError(f"{name} holds a number that is no {bounds.dtype}; ids are int64")
    array: np.ndarray = np.asarray(values, dtype)[None]
    tensor = triton.InferInput(name, list(array.shape), f"INT{8 * array.itemsize}")
    tensor.set_data_from_numpy(array)
    return tensor
