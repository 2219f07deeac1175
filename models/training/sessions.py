"""Which sessions alignment trains on: the probe's, RSFT's, and those of the users of the policy objective.

A session is a row of the newest training set: the positives of a user and day, with the context before them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from models.training.align_config import AlignConfig
from models.training.data import TrainingSet


def split_sessions(data: TrainingSet, config: AlignConfig, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Rows of the probe, of RSFT's sessions, and those of RSFT's users who take part in the policy objective.

    Raises ValueError when fewer than two rows hold a positive.
    """
    with_targets = rng.permutation(np.flatnonzero(data.targets.lengths > 0))
    if len(with_targets) < 2:
        raise ValueError(
            f"{len(with_targets)} rows with a positive (long_view, like, follow, forward) in the newest day: alignment "
            "needs one to train on and one to measure; align a day with more impressions"
        )
    held = with_targets[: min(config.probe_users, max(1, len(with_targets) // 4))]
    sessions = longer_half(data, with_targets[len(held) :])
    users = rng.permutation(sessions)[: max(round(config.user_share * len(sessions)), config.min_users)]
    return held, sessions, users


def longer_half(data: TrainingSet, rows: np.ndarray) -> np.ndarray:
    """RSFT's filter: the half of the sessions with the longer play time (unknown play time counts as none)."""
    row = np.repeat(np.arange(len(data)), data.shown.lengths)
    play = np.bincount(row, np.maximum(data.shown.values[:, 3], 0), minlength=len(data))
    order = rows[np.argsort(play[rows], kind="stable")]
    return order[len(order) // 2 :]


def session_batches(data: TrainingSet, sessions: np.ndarray, config: AlignConfig, seed: int) -> list[np.ndarray]:
    """Sessions in seeded passes until `min_steps` batches are there, at most `max_passes` and `max_steps`."""
    out: list[np.ndarray] = []
    passes = 0
    while not out or (len(out) < config.min_steps and passes < config.max_passes):
        out += data.batches(sessions, config.batch_size, seed + passes)
        passes += 1
        if passes > 1 and len(out) >= config.min_steps:
            out = out[: config.min_steps]
    return out[: config.max_steps]


def user_turns(data: TrainingSet, users: np.ndarray, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Contexts of `count` users (rows of `data`) at a time, round and round, for ever.

    With `seen`, what each had been shown before: places in the catalogue [B, S], padded with -1.
    """
    at, longest = np.arange(count), int(data.seen.lengths.max(initial=0))
    while True:
        rows = users[at % len(users)]
        seen, real = data.seen.right_aligned(rows, longest)
        known = np.where(real, data.catalogue.index(seen), -1)
        yield data.context(rows) | {"seen": torch.from_numpy(known)}
        at = (at + count) % len(users)
