"""The block list: items that no answer may hold, at once and without a release. One small object of the store.

    block(store, [42, 7], reason="taken down")        unblock(store, [42])        read(store).items

A server that follows the store (serving/controller.py) takes it over within a second. The next release leaves
withdrawn items out by itself; the list is for what cannot wait.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable

from releases.manifest import canonical_json
from releases.object_store import ObjectStore, digest_bytes

KEY = "channels/blocklist.json"
KEPT = 1000  # changes in the history


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocklist:
    """Blocked items, sorted, and every change of late (when, what, why)."""

    items: list[int]
    history: list[dict[str, object]]


def read(store: ObjectStore) -> Blocklist:
    """Empty when nothing was ever blocked. ValueError for an unreadable list: it must not be ignored."""
    if (data := store.get(KEY)) is None:
        return Blocklist(items=[], history=[])
    try:
        found = Blocklist(**json.loads(data))
        return dataclasses.replace(found, items=sorted(int(item) for item in found.items))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the block list is unreadable ({error}); write it anew with `onerec release block`") from None


def block(store: ObjectStore, items: Iterable[int], *, reason: str) -> Blocklist:
    """Add items. A concurrent change makes it fail (ConflictError), not overwrite."""
    return _change(store, set(items), "block", reason)


def unblock(store: ObjectStore, items: Iterable[int], *, reason: str) -> Blocklist:
    """Take items off. Raises ValueError naming one that is not on it."""
    return _change(store, set(items), "unblock", reason)


def _change(store: ObjectStore, items: set[int], what: str, reason: str) -> Blocklist:
    data, now = store.get(KEY), read(store)
    if what == "unblock" and (missing := items - set(now.items)):
        raise ValueError(f"item {min(missing)} is not blocked; nothing was changed")
    kept = set(now.items) | items if what == "block" else set(now.items) - items
    at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    entry: dict[str, object] = {"at": at, "change": what, "items": sorted(items), "reason": reason}
    history = [*now.history, entry][-KEPT:]
    changed = Blocklist(items=sorted(kept), history=history)
    etag = None if data is None else digest_bytes(data)
    store.compare_and_swap(KEY, canonical_json(dataclasses.asdict(changed)), etag)
    return changed
