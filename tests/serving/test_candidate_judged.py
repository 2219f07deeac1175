"""What counts against a candidate: failures, illegal items, and empty answers where production has something to say.

No server: the routes are made up, and `infer` is a function that says what each of them answers to each user.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from feature_repo.online import UserFeatures
from serving.answering import Answering, Shadow
from serving.config import Rollout, ServingConfig
from serving.features import FULL
from serving.route import Ask, Picked
from serving.routing import Guard, View

USERS = range(1, 41)
FEATURES = UserFeatures(**dict.fromkeys(UserFeatures.__dataclass_fields__, np.zeros((0, 7), np.int64)))


def ask(user: int) -> Ask:
    none = np.zeros(0, np.int64)
    return Ask(
        user_id=user, k=2, now_s=100, exclude=none, exclude_authors=none, live=np.zeros((0, 7), np.int64), max_age_s=0,
        beam=0, rerank=False,
    )  # fmt: skip


class Fake:
    """Two releases; `silent` says who has nothing to say to whom: {"old": users, "new": users}."""

    def __init__(self, silent: dict[str, set[int]], *, percent: float = 100.0) -> None:
        self.silent, self.reason = silent, ""
        rollout = Rollout(canary_percent=percent, min_requests=5, window=100, max_slowdown=1000)
        self.now = View(1, self.route("old"), self.route("new"), rollout, Guard(rollout), np.zeros(0, np.int64))
        self.answering = Answering(self, self, self.infer, ServingConfig(max_beam=4, max_k=2))

    def route(self, name: str) -> Any:
        def pick(items, scores, sids, ask, seen, blocked) -> Picked:
            kept = np.zeros(0, np.int64) if ask.user_id in self.silent[name] else items
            return Picked(kept, scores[: len(kept)], sids[: len(kept)], 0)

        encoder = SimpleNamespace(encode=lambda features, now_s: {"x": np.zeros(1)})
        return SimpleNamespace(release_id=name, model=name, encoder=encoder, catalogue=[0] * 4, pick=pick)

    def infer(self, model: str, batch: dict, params: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = len(params)
        return np.tile([7, 8], (n, 1)), np.zeros((n, 2)), np.zeros((n, 2, 3), np.int64)

    def read(self, users: list[int]) -> list:
        return [(FEATURES, FULL)] * len(users)

    def abort(self, release_id: str, reason: str) -> None:
        self.reason = self.reason or f"{release_id}: {reason}"


def test_a_candidate_that_is_silent_where_production_is_too_stays() -> None:
    fake = Fake({"old": set(USERS), "new": set(USERS)})
    answers = [fake.answering.answer([ask(user)])[0] for user in USERS]
    assert {len(a.picked.items) for a in answers} == {0} and fake.now.guard.seen == len(USERS)
    assert fake.reason == ""


def test_a_candidate_that_is_silent_where_production_is_not_goes_and_nobody_sees_it() -> None:
    fake = Fake({"old": set(), "new": {3, 4}})
    answers = fake.answering.answer([ask(user) for user in USERS])
    assert [len(a.picked.items) for a in answers] == [2] * len(USERS)
    assert {a.route.release_id for a, user in zip(answers, USERS) if user in (3, 4)} == {"old"}
    assert fake.reason == "new: 40.0 % of 5 requests failed, or came back empty where production's did not"


@pytest.mark.parametrize("old, stays", [({1, 2, 3, 4, 5}, True), (set(), False)])
def test_shadow_compares_with_the_answer_that_was_shown(old: set[int], stays: bool) -> None:
    fake = Fake({"old": old, "new": {1, 2, 3, 4, 5}}, percent=0.0)
    for user in range(1, 6):
        (shown,) = fake.answering.answer([ask(user)])
        overlap = fake.answering.shadow(Shadow(ask(user), FEATURES, shown.picked.items))
        assert overlap == (1.0 if stays else 0.0)
    assert (fake.reason == "") is stays
