"""Channels: one small pointer object a name (`production`, `candidate`), moved by compare-and-swap.

    promote(store, "2022-05-05-0123456789ab")          rollback(store, "production")

The pointer names one release and keeps the stack of those it named before, so a rollback moves it back and retrains
nothing. A reader sees the old or the new release, never a mixture: releases themselves never change.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

from releases.manifest import canonical_json, check_release_id, load_release, released
from releases.object_store import ConflictError, ObjectStore, StoreError, digest_bytes
from releases.removal import being_removed

CHANNELS = ("production", "candidate")
SKEW = dt.timedelta(minutes=5)  # how far a publisher's clock may be ahead of the promoter's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """A pointer: the release in use, the ones before it (oldest first), and every move (when, what, why)."""

    name: str
    release_id: str
    previous: list[str]
    history: list[dict[str, str]]


def read_channel(store: ObjectStore, name: str) -> Channel | None:
    """Where a channel points, None when it was never moved. ValueError for an unknown name or an unreadable pointer."""
    data = store.get(_key(name))
    return None if data is None else _parse(name, data)


def channel_in_use(store: ObjectStore, name: str) -> Channel:
    """As `read_channel`, for whoever needs a release: ValueError with the mend when the channel was never moved."""
    if (channel := read_channel(store, name)) is None:
        mend = "promote one: onerec release promote RELEASE" if released(store) else "make one: onerec daily"
        raise ValueError(f"channel {name} names no release; {mend}")
    return channel


def move_channel(store: ObjectStore, name: str, to: str, expect: str | None, reason: str = "moved") -> Channel:
    """Point `name` at release `to` if it points at `expect` now (None: nowhere yet).

    The release is verified first. Raises ConflictError when the channel points elsewhere, ValueError when the release
    is unknown, damaged, not properly signed or from the future. Moving to where it points already changes nothing.
    """
    _usable(store, to)
    return _swap(store, name, expect, lambda now: _pushed(now, to), reason)


def promote(store: ObjectStore, release_id: str, *, channel: str = "production", reason: str = "promoted") -> Channel:
    """Point the channel at a release, from wherever it points now; a concurrent move makes it fail, not overwrite."""
    now = read_channel(store, channel)
    return move_channel(store, channel, release_id, now.release_id if now else None, reason)


def rollback(store: ObjectStore, channel: str = "production", *, reason: str = "rolled back") -> Channel:
    """Point the channel at the release before the present one; again goes further back.

    Raises ValueError when there is none before, or when that release is damaged.
    """
    now = read_channel(store, channel)
    if now is None or not now.previous:
        raise ValueError(f"channel {channel} has no earlier release to roll back to; promote one by its id instead")
    _usable(store, now.previous[-1])
    return _swap(store, channel, now.release_id, lambda c: (c.previous[-1], c.previous[:-1]), reason)


def _swap(store: ObjectStore, name: str, expect: str | None, change, reason: str) -> Channel:
    data = store.get(_key(name))
    now = None if data is None else _parse(name, data)
    found = now.release_id if now else None
    if found != expect:
        raise ConflictError(f"channel {name} points at {found}, not at {expect}; look at it again before moving it")
    release_id, previous = change(now)
    if now and release_id == now.release_id:
        return now
    at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    history = [*(now.history if now else []), {"release_id": release_id, "at": at, "reason": reason}]
    moved = Channel(name=name, release_id=release_id, previous=previous, history=history)
    etag = None if data is None else digest_bytes(data)
    written = store.compare_and_swap(_key(name), canonical_json(dataclasses.asdict(moved)), etag)
    if being_removed(store, release_id):  # a collection that announced itself before it could see this move
        if data is not None:
            store.compare_and_swap(_key(name), data, written)
        raise ConflictError(f"release {release_id} is being removed; channel {name} stays at {found}")
    return moved


def _usable(store: ObjectStore, release_id: str) -> None:
    """Whole, signed where that is asked for, not about to be removed, and not dated ahead of this clock."""
    _, manifest = load_release(store, release_id)
    if being_removed(store, release_id):
        raise StoreError(f"release {release_id} is being removed; choose another")
    try:
        ahead = dt.datetime.fromisoformat(manifest.created_at) - dt.datetime.now(dt.UTC)
    except (ValueError, TypeError):
        raise ValueError(f"release {release_id}: created_at is {manifest.created_at!r}; publish it again") from None
    if ahead > SKEW:
        raise ValueError(
            f"release {release_id} was created {ahead} from now: the publisher's clock or this one is wrong;"
            " mend the clock, then publish again or wait"
        )


def _pushed(now: Channel | None, to: str) -> tuple[str, list[str]]:
    return to, [*now.previous, now.release_id] if now else []


def _key(name: str) -> str:
    if name not in CHANNELS:
        raise ValueError(f"unknown channel {name!r}; the channels are {', '.join(CHANNELS)}")
    return f"channels/{name}.json"


def _parse(name: str, data: bytes) -> Channel:
    try:
        channel = Channel(**json.loads(data))
        check_release_id(channel.release_id)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the pointer of channel {name} is unreadable ({error}); remove it and promote") from None
    return channel
