"""Publish a day's files as one immutable release: files and signature first, the manifest last makes it visible.

    release_id = publish(store=DirectoryStore(...), day="2022-05-05", source="simulated", files={...}, ...)

Run again with the same contents it finds the release, verifies it and changes nothing. Killed at any point it leaves
either the whole release or nothing that a reader can see.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from releases.contents import check_contents
from releases.manifest import (
    MANIFEST,
    Manifest,
    check_release_id,
    content_digest,
    describe_files,
    load_release,
    make_release_id,
)
from releases.object_store import ObjectStore, digest_bytes
from releases.signing import sign, signature_name


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
    for entry in entries:
        check_contents(files[entry.path], entry.path)
    sources = {entry.path: (files[entry.path], entry.sha256) for entry in entries}
    text = manifest.to_bytes()
    with tempfile.TemporaryDirectory() as folder:
        if signature := sign(text):
            path = Path(folder) / "signature"
            path.write_bytes(signature)
            sources[signature_name(text)] = (path, digest_bytes(signature))
        store.put_tree(f"releases/{release_id}", sources, (MANIFEST, text))
    load_release(store, release_id)
    return release_id


def sign_release(store: ObjectStore, release_id: str) -> None:
    """Sign a release that is there (an older one, or after a change of keys); its files must be whole.

    Raises ValueError without ONEREC_SIGNING_KEY, or when its key is not a trusted one.
    """
    data = store.get(f"releases/{check_release_id(release_id)}/{MANIFEST}")
    if data is None:
        raise ValueError(f"there is no release {release_id} in this store; see `onerec release list`")
    signature = sign(data)
    if signature is None:
        raise ValueError("set ONEREC_SIGNING_KEY to the signer's secret key (onerec release keygen makes a pair)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature"
        path.write_bytes(signature)
        store.put_file(f"releases/{release_id}/{signature_name(data)}", path)
    store.drop_copy(f"releases/{release_id}")
    load_release(store, release_id)
