"""What `recommend` does with a batch of checked requests: features, contexts, model, choice of items, canary, shadow.

    answers = Answering(reader, routing, infer, config).answer(asks)

`infer(model, tensors, params)` runs the Triton model of a release; in tests it is a function. An answer always comes
from one release: a candidate that fails is replaced by production's whole answer, and the failure counted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from feature_repo.online import UserFeatures
from feature_repo.views import SHORT_LEN
from serving.config import ServingConfig
from serving.features import DEGRADED, FULL, STALE, FeatureReader, with_live
from serving.route import Ask, Picked, Route
from serving.routing import Routing, View

Arrays = dict[str, np.ndarray]
Infer = Callable[[str, Arrays, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class OverloadedError(RuntimeError):
    """The model's queue is full or the request waited too long; another try elsewhere or later may do."""


@dataclasses.dataclass(frozen=True)
class Given:
    """An answer with what it rests on. `kind`: serving/features.py."""

    route: Route
    picked: Picked
    features: UserFeatures
    kind: str


@dataclasses.dataclass(frozen=True)
class Shadow:
    """A request to run on the candidate too: what was asked and what production answered."""

    ask: Ask
    features: UserFeatures
    items: np.ndarray


class Answering:
    """One instance of `recommend`; `answer` is called by one thread, `shadow` by another."""

    def __init__(self, reader: FeatureReader, routing: Routing, infer: Infer, config: ServingConfig) -> None:
        self.reader, self.routing, self.infer, self.config = reader, routing, infer, config

    def answer(self, asks: Sequence[Ask]) -> list[Given | Exception]:
        """An answer or an exception for each request: ValueError (client), OverloadedError, or whatever failed."""
        view = self.routing.now
        read = self.reader.read([ask.user_id for ask in asks])
        context = [(ask, self._with_live(features, ask), kind) for ask, (features, kind) in zip(asks, read)]
        results: dict[int, Given | Exception] = {}
        canary = [i for i, ask in enumerate(asks) if view.canary(ask.user_id)]
        tried, seconds = {}, 0.0
        if canary and view.candidate is not None:
            tried, seconds = self._timed(view, view.candidate, canary, context)
            results |= {i: given for i, given in tried.items() if _items(given)}  # the others are production's
        rest = [i for i in range(len(asks)) if i not in results]
        if rest:
            started = time.perf_counter()
            results |= self._on(view, view.production, rest, context)
            view.guard.production((time.perf_counter() - started) / len(rest))
        if tried and view.candidate is not None:
            instead = {i: _items(given) for i, given in results.items()}
            self._judge(view, view.candidate, tried, seconds, instead)
        return [results[i] for i in range(len(asks))]

    def shadow(self, job: Shadow) -> float | None:
        """Run a request on the candidate; the overlap at K with production's answer, None without a candidate."""
        view = self.routing.now
        if view.candidate is None:
            return None
        results, seconds = self._timed(view, view.candidate, [0], [(job.ask, job.features, FULL)])
        self._judge(view, view.candidate, results, seconds, {0: len(job.items)})
        given = results[0]
        if isinstance(given, Exception):
            return 0.0
        most = max(len(job.items), len(given.picked.items))
        return len(np.intersect1d(job.items, given.picked.items)) / most if most else 1.0

    def _timed(self, view: View, route: Route, rows: list[int], context: list):
        started = time.perf_counter()
        results = self._on(view, route, rows, context)
        return results, (time.perf_counter() - started) / len(rows)

    def _judge(
        self, view: View, route: Route, results: dict[int, Given | Exception], seconds: float, instead: dict[int, int]
    ) -> None:
        """Count the candidate's answers. `instead`: how many items the user got who was given another answer than an
        empty one; an empty answer is the candidate's fault only where production had something to say."""
        for i, given in results.items():
            if isinstance(given, ValueError | OverloadedError):  # the client's fault, or the machine's
                continue
            failed = isinstance(given, Exception)
            picked = None if isinstance(given, Exception) else given.picked
            reason = view.guard.candidate(
                seconds,
                failed=failed,
                empty=picked is not None and not len(picked.items) and instead[i] > 0,
                illegal=picked.illegal if picked else 0,
            )
            if reason:
                self.routing.abort(route.release_id, reason)

    def _with_live(self, features: UserFeatures, ask: Ask) -> UserFeatures:
        short, seen = with_live(features, ask.live, SHORT_LEN)
        return features if short is features.short else dataclasses.replace(features, short=short, seen=seen)

    def _on(self, view: View, route: Route, rows: list[int], context: list) -> dict[int, Given | Exception]:
        """Answers of one release. Users left with fewer than k items are asked for once more with the widest beam."""
        results: dict[int, Given | Exception] = {}
        widest = self.config.max_beam
        first = {i: context[i][0].first_beam(widest) for i in rows}
        self._round(view, route, first, context, results)
        if not (limit := min(widest, len(route.catalogue))):
            return results
        again = {}
        for i in rows:
            given, ask = results[i], context[i][0]
            if isinstance(given, Given) and len(given.picked.items) < ask.k and first[i] < limit:
                again[i] = widest
        if again:
            self._round(view, route, again, context, results)
        return results

    def _round(self, view: View, route: Route, beams: dict[int, int], context: list, results: dict) -> None:
        groups: dict[tuple[int, bool], list[tuple[int, Arrays]]] = {}
        for i, beam in beams.items():
            ask, features, kind = context[i]
            try:
                tensors = route.encoder.encode(features, ask.now_s)
            except ValueError as error:
                # Features of another service than the release's: the store's fault, not the client's.
                results[i] = RuntimeError(str(error))
                continue
            rerank = ask.rerank or self.config.select == "p_score"
            groups.setdefault((beam, rerank), []).append((i, tensors))
        for (beam, rerank), members in groups.items():
            batch = {name: np.stack([tensors[name] for _, tensors in members]) for name in members[0][1]}
            params = np.tile(np.array([beam, beam, rerank], np.int32), (len(members), 1))
            try:
                found = self.infer(route.model, batch, params)
            except Exception as error:
                results.update({i: error for i, _ in members})
                continue
            for row, (i, _) in enumerate(members):
                ask, features, kind = context[i]
                items, scores, sids = (values[row] for values in found)
                picked = route.pick(items, scores, sids, ask, features.seen, view.blocked)
                results[i] = Given(route, picked, features, kind)


def _items(given: Given | Exception) -> int:
    """How many items an answer has; a failure has none."""
    return 0 if isinstance(given, Exception) else len(given.picked.items)


def flags_of(kind: str) -> int:
    """The bits of an answer's `flags`: 1 cold start, 2 degraded, 4 features from the cache."""
    return {FULL: 0, DEGRADED: 2, STALE: 2 | 4}.get(kind, 1)
