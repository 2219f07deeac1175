"""What the pathways are made by: lengths, the positive rule, when a lifelong pathway is clustered anew, the grain.

PathwaysConfig()                                   # the defaults, which `onerec daily` uses
PathwaysConfig(grain="session", positive_labels=("is_like", "is_follow"))
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from datasets.contract import LABELS, POSITIVE_LABELS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathwaysConfig:
    """Everything that can be chosen about the pathways. Raises ValueError for a value that makes no sense."""

    short_len: int = 20
    positive_len: int = 256
    lifelong_len: int = 2000
    positive_labels: tuple[str, ...] = POSITIVE_LABELS
    """An event with any of these belongs to the positive pathway."""

    redo_events: int = 16
    redo_share: float = 0.1
    """A user's history is clustered anew when it grew by this many events and by this share since it last was."""

    grain: Literal["day", "session"] = "day"
    """A training row is a user and day, with the short pathway as of the end of the day before; or a user and session,
    with the short pathway as of the start of that session."""

    session_gap_minutes: int = 30
    """A session ends when nothing was shown for so long."""

    bucket_events: int = 2_000_000
    """Users are worked on in buckets of about so many events: bounds the memory, changes no row."""

    def __post_init__(self) -> None:
        least = {"short_len": 1, "positive_len": 1, "lifelong_len": 1, "redo_events": 1, "redo_share": 0}
        for name, low in {**least, "session_gap_minutes": 1, "bucket_events": 1}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.grain not in ("day", "session"):
            raise ValueError(f"grain is {self.grain!r}; choose 'day' or 'session'")
        if not self.positive_labels or not set(self.positive_labels) <= set(LABELS):
            raise ValueError(f"positive_labels is {self.positive_labels}; choose one or more of {', '.join(LABELS)}")

    @property
    def positive_mask(self) -> int:
        """The bits of `positive_labels` in a label mask."""
        return sum(1 << LABELS.index(name) for name in self.positive_labels)
