"""Publish a day's files as one immutable release: files first, the manifest last, one rename makes it visible.

    release_id = publish(store=DirectoryStore(...), day="2022-05-05", source="simulated", files={...}, ...)

Run again with the same contents it finds the release, verifies it and changes nothing. Killed at any point it leaves
either the whole release or nothing that a reader can see.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from releases.manifest import MANIFEST, Manifest, content_digest, describe_files, load_release, make_release_id
from releases.object_store import ObjectStore


def publish(
    *,
    store: ObjectStore,
    day: str,
    source: str,
    files: Mapping[str, Path],
    summaries: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    parents: list[str],
    seed: int,
    code_commit: str,
    environment: Mapping[str, Any],
) -> str:
    """Write a release and return its id.

    `files` maps the path inside the release to a local file; `summaries` describes tokenizer, model, reward and
    feature service; `data` holds the digests of the partitions that were read. Raises ValueError that names a
    missing file, a NaN in the metadata, or an existing release with this id that is damaged.
    """
    entries = describe_files(files)
    release_id = make_release_id(day, content_digest(entries))
    start = dt.date.fromisoformat(day)
    manifest = Manifest(
        release_id=release_id,
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        source=source,
        data_interval={"start": start.isoformat(), "end": (start + dt.timedelta(days=1)).isoformat()},
        data=dict(data),
        parents=list(parents),
        code_commit=code_commit,
        environment=dict(environment),
        seed=seed,
        summaries=dict(summaries),
        metrics=dict(metrics),
        files=entries,
    )
    sources = {entry.path: (files[entry.path], entry.sha256) for entry in entries}
    store.put_tree(f"releases/{release_id}", sources, (MANIFEST, manifest.to_bytes()))
    load_release(store, release_id)
    return release_id
