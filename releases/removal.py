"""The announcement of a removal: read by whoever moves a channel, written by garbage collection.

mark(store, release_id, "removing")      being_removed(store, release_id)
"""

from __future__ import annotations

import datetime as dt
import json

from releases.manifest import canonical_json, check_release_id
from releases.object_store import ObjectStore, digest_bytes


def mark(store: ObjectStore, release_id: str, state: str) -> None:
    """Write the state of a removal: removing, removed, or kept (called off)."""
    key = _key(release_id)
    old = store.get(key)
    data = canonical_json({"state": state, "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")})
    if data != old:
        store.compare_and_swap(key, data, None if old is None else digest_bytes(old))


def being_removed(store: ObjectStore, release_id: str) -> bool:
    """Has a collection announced that this release goes?"""
    return _mark(store, release_id).get("state") == "removing"


def removed_at(store: ObjectStore, release_id: str) -> str | None:
    """When a collection removed this release (ISO, UTC); None when none did."""
    found = _mark(store, release_id)
    return found["at"] if found.get("state") == "removed" else None


def _mark(store: ObjectStore, release_id: str) -> dict[str, str]:
    data = store.get(_key(release_id))
    return {} if data is None else json.loads(data)


def _key(release_id: str) -> str:
    return f"gc/{check_release_id(release_id)}.json"
