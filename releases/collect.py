"""Garbage collection: which releases nobody needs any more, and their removal after a dry run.

    found = plan(store)                # what would go, what stays and why
    collect(store, found.token)        # only what that very plan says

A release stays while a channel names it, while a rollback may return to it, while it is young, or while the next day
starts from it. A removal is announced first (`gc/<release>.json`), then the channels are read again: a promotion that
happens at the same time sees the announcement or is seen, so no pointer ends at a release that is gone.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from releases.channels import CHANNELS, read_channel
from releases.manifest import MANIFEST, Manifest, canonical_json, released
from releases.object_store import ObjectStore, digest_bytes
from releases.removal import mark


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """What is never removed: releases of the newest `days` days, `rollbacks` steps back in each channel, and whatever
    was written in the last `hours` (an upload may be under way)."""

    days: int = 30
    rollbacks: int = 10
    hours: float = 24.0

    def __post_init__(self) -> None:
        if self.days < 1 or self.rollbacks < 1 or self.hours < 1:
            raise ValueError(f"{self}: days, rollbacks and hours are at least 1, or nothing could be rolled back")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`keep`: release -> why. `remove`: whole releases -> bytes. `half`: trees without a manifest -> bytes."""

    keep: dict[str, str]
    remove: dict[str, int]
    half: dict[str, int]

    @property
    def token(self) -> str:
        """Names what would be removed; `collect` wants it."""
        return digest_bytes(canonical_json([sorted(self.remove), sorted(self.half)]))[:12]


def plan(store: ObjectStore, keep: Keep = Keep(), now: dt.datetime | None = None) -> Plan:
    """What a collection would do. Changes nothing."""
    now = now or dt.datetime.now(dt.UTC)
    whole = released(store)
    reasons: dict[str, str] = {}
    for name in CHANNELS:
        if channel := read_channel(store, name):
            for release_id in channel.previous[-keep.rollbacks :]:
                reasons[release_id] = f"{name} may be rolled back to it"
    for name in CHANNELS:
        if channel := read_channel(store, name):
            reasons[channel.release_id] = f"{name} names it"
    newest = sorted({release_id[:10] for release_id in whole})[-keep.days :]
    kept, remove, half = {}, {}, {}
    for release_id in store.children("releases"):
        objects = store.objects(f"releases/{release_id}")
        size, written = sum(o.size for o in objects), max((o.modified for o in objects), default=now)
        young = now - written < dt.timedelta(hours=keep.hours)
        if release_id in reasons:
            kept[release_id] = reasons[release_id]
        elif release_id not in whole:
            if young:
                kept[release_id] = "half published, may be under way"
            else:
                half[release_id] = size
        elif young:
            kept[release_id] = "written just now"
        elif release_id[:10] in newest:
            kept[release_id] = f"one of the newest {keep.days} days"
        else:
            remove[release_id] = size
    return Plan(keep=kept, remove=remove, half=half)


def collect(store: ObjectStore, token: str, keep: Keep = Keep(), now: dt.datetime | None = None) -> list[str]:
    """Remove what the plan with this token says; returns the releases that went.

    Raises ValueError when the plan of now is another one: make a dry run first, and read it.
    """
    found = plan(store, keep, now)
    if found.token != token:
        raise ValueError(f"the plan {token or '(none)'} is not that of now; look at it first: onerec release gc")
    gone = []
    for release_id in [*sorted(found.remove), *sorted(found.half)]:
        mark(store, release_id, "removing")
        if release_id in _named(store, keep):
            mark(store, release_id, "kept")
            continue
        store.delete_tree(f"releases/{release_id}", MANIFEST)
        mark(store, release_id, "removed")
        gone.append(release_id)
    return gone


def lineage(store: ObjectStore, release_id: str, depth: int = 10) -> list[str]:
    """The release's parents, nearest first, as far as they are still here (and one further, by name)."""
    chain: list[str] = []
    while len(chain) < depth:
        data = store.get(f"releases/{release_id}/{MANIFEST}")
        parents = Manifest.from_bytes(data, f"release {release_id}").parents if data else []
        if not parents or parents[0] in chain:
            break
        release_id = parents[0]
        chain.append(release_id)
    return chain


def _named(store: ObjectStore, keep: Keep) -> set[str]:
    named: set[str] = set()
    for name in CHANNELS:
        if channel := read_channel(store, name):
            named |= {channel.release_id, *channel.previous[-keep.rollbacks :]}
    return named
