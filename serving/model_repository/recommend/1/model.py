"""Triton model `recommend`: a user id in, unseen items out. Features come from Feast, items from `onerec-<release>`.

A user whom the feature store does not know is answered all the same (flag: cold start). So is everybody when the store
fails (flag: degraded). Bad requests are refused with INVALID_ARG and a sentence; whatever else goes wrong is written to
the server's log, without what identifies the user, and told to the client without its details.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import random
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from feature_repo.online import OnlineFeatures
from models.onerec.features import LABEL_STATES, NUM_FIELDS
from serving.answering import Answering, Given, OverloadedError, Shadow, flags_of
from serving.config import ServingConfig
from serving.dlpack import array, read, read_optional, write
from serving.features import DEGRADED, FeatureReader
from serving.measures import Measures
from serving.route import Ask
from serving.routing import Routing

MAX_EXCLUDE, MAX_LIVE, MAX_TIME_S = 10_000, 1_000, 1 << 40
OUTPUTS = ("item_ids", "scores", "sids")
SHADOW_QUEUE = 64
OVERLOADED = "overloaded: the model's queue is full or the request waited too long; try again later"


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        settings = json.loads(Path(os.environ["ONEREC_SETTINGS"]).read_text())
        self.config = ServingConfig(**settings["config"])
        log = pb_utils.Logger.log_warn
        store = OnlineFeatures(Path(settings["features"]), Path(settings["feature_store"]))
        self.reader = FeatureReader(
            store,
            timeout_s=self.config.feature_timeout_ms / 1000,
            cache_users=self.config.cache_users,
            stale_s=self.config.stale_s,
            log=lambda text: log(f"recommend: {text}"),
        )
        self.routing = Routing(
            Path(settings["state"]), args["model_instance_name"], lambda text: log(f"recommend: {text}")
        )
        self.answering = Answering(self.reader, self.routing, _infer, self.config)
        self.measures = Measures(pb_utils)
        self.reader.warm()
        self.shadows: queue.Queue[Shadow | None] = queue.Queue(SHADOW_QUEUE)
        self.chance = random.Random(0)
        self.thread = threading.Thread(target=self._shadow, name="shadow", daemon=True)
        self.thread.start()
        # What is there now stays: a full collection that walks it takes 0.2 s, and every request under way waits.
        gc.collect()
        gc.freeze()
        pb_utils.Logger.log_info(f"recommend: release {self.routing.now.production.release_id}")

    def finalize(self) -> None:
        self.shadows.put(None)
        self.routing.close()

    def execute(self, requests: list) -> list:
        responses: list = [None] * len(requests)
        asks: dict[int, Ask] = {}
        for i, request in enumerate(requests):
            try:
                asks[i] = _checked(request, self.config)
            except ValueError as error:
                self.measures.refused()
                responses[i] = _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # one request must never take its batch with it
                responses[i] = self._failed(error)
        if asks:
            try:
                given = self.answering.answer(list(asks.values()))
            except Exception as error:
                given = [error] * len(asks)
            for (i, ask), answer in zip(asks.items(), given):
                responses[i] = self._response(ask, answer)
        self.measures.state(self.routing.now, self.reader.breaker.open, self.routing.taken_out)
        self.measures.tell()
        return responses

    def _response(self, ask: Ask, given: Given | Exception):
        if isinstance(given, ValueError):
            self.measures.refused()
            return _refusal(str(given), pb_utils.TritonError.INVALID_ARG)
        if isinstance(given, OverloadedError):
            return _refusal(OVERLOADED, pb_utils.TritonError.UNAVAILABLE)
        if isinstance(given, Exception):
            return self._failed(given)
        self.measures.answered(ask, given)
        view, picked = self.routing.now, given.picked
        shadowed = view.candidate is not None and given.route is view.production and given.kind != DEGRADED
        if shadowed and self.chance.random() * 100 < view.rollout.shadow_percent and not self.shadows.full():
            self.shadows.put_nowait(Shadow(ask, given.features, picked.items))
        columns = {
            "item_ids": picked.items.astype(np.int64),
            "scores": picked.scores.astype(np.float32),
            "sids": picked.sids.astype(np.int32),
            "release": given.route.release,
            "feature_time_s": np.array([given.features.feature_time_s], np.int64),
            "flags": np.array([flags_of(given.kind)], np.int32),
        }
        return pb_utils.InferenceResponse([write(name, values[None]) for name, values in columns.items()])

    def _failed(self, error: Exception):
        self.measures.error(self.routing.now.production.release_id)
        pb_utils.Logger.log_error(f"recommend: {''.join(traceback.format_exception(error))}")
        return _refusal("the model failed; the server's log has the reason", pb_utils.TritonError.INTERNAL)

    def _shadow(self) -> None:
        while (job := self.shadows.get()) is not None:
            try:
                view = self.routing.now
                if (overlap := self.answering.shadow(job)) is not None and view.candidate is not None:
                    self.measures.shadow(view.candidate.release_id, overlap)
                    self.measures.tell()
            except Exception:
                pb_utils.Logger.log_error(f"recommend: shadow: {traceback.format_exc()}")


def _checked(request, config: ServingConfig) -> Ask:
    """A request as an Ask; ValueError for what a client must mend. Shapes and types were checked by Triton."""
    user_id, k = read(request, "user_id").numpy(), read(request, "k").numpy()
    if len(user_id) != 1:
        raise ValueError(f"the request asks for {len(user_id)} users; send one user a request, the server batches them")
    fields = {"k": int(k[0, 0])}
    for name, default in (("now_s", 0), ("max_age_s", 0), ("beam", 0), ("rerank", 0)):
        given = read_optional(request, name)
        fields[name] = default if given is None else int(given[0, 0])
    fields["now_s"] = fields["now_s"] or int(time.time())
    lists = {}
    for name, longest, what in (
        ("exclude", MAX_EXCLUDE, "items"),
        ("exclude_authors", MAX_EXCLUDE, "authors"),
        ("live", MAX_LIVE, "events"),
    ):
        given = read_optional(request, name)
        lists[name] = np.zeros((0, NUM_FIELDS) if name == "live" else 0, np.int64) if given is None else given[0]
        if len(lists[name]) > longest:
            raise ValueError(f"{name} has {len(lists[name])} {what}; give at most {longest}")
    if not 1 <= fields["k"] <= config.max_k:
        raise ValueError(f"k is {fields['k']}; ask for 1 to {config.max_k} items")
    if not 0 <= fields["now_s"] <= MAX_TIME_S:
        raise ValueError(f"now_s is {fields['now_s']}; give the unix time of the request in seconds")
    if not 0 <= fields["max_age_s"] <= MAX_TIME_S:
        raise ValueError(f"max_age_s is {fields['max_age_s']}; give seconds, or 0 for items of any age")
    if fields["beam"] and not fields["k"] <= fields["beam"] <= config.max_beam:
        raise ValueError(f"beam is {fields['beam']}; give {fields['k']} (k) to {config.max_beam}, or leave it out")
    if fields["rerank"] not in (0, 1):
        raise ValueError(f"rerank is {fields['rerank']}; give 0 or 1")
    if len(live := lists["live"]) and not (
        ((live[:, 3:6] >= -1) & (live[:, 3:6] <= MAX_TIME_S)).all()
        and ((live[:, 6] >= 0) & (live[:, 6] < LABEL_STATES)).all()
    ):
        raise ValueError("live has an event whose time, play time, duration or label is out of range; -1 is unknown")
    return Ask(user_id=int(user_id[0, 0]), rerank=bool(fields.pop("rerank")), **fields, **lists)


def _infer(model: str, tensors: dict[str, np.ndarray], params: np.ndarray):
    """Run a release's model on the same server. Raises OverloadedError, ValueError or RuntimeError."""
    inputs = [write(name, values) for name, values in (tensors | {"params": params}).items()]
    request = pb_utils.InferenceRequest(model_name=model, requested_output_names=list(OUTPUTS), inputs=inputs)
    response = request.exec()
    if response.has_error():
        code, message = response.error().code(), response.error().message()
        if code == pb_utils.TritonError.UNAVAILABLE and ("queue" in message or "timeout" in message.lower()):
            raise OverloadedError(message)
        if code == pb_utils.TritonError.INVALID_ARG:
            raise ValueError(message.rpartition("message: ")[2])
        raise RuntimeError(f"{model}: {message}")
    return tuple(array(pb_utils.get_output_tensor_by_name(response, name)).numpy() for name in OUTPUTS)


def _refusal(message: str, code: int):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
