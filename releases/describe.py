"""What the command line says about releases: a list, one of them, the difference of two. Plain dicts and text.

onerec release list | show RELEASE | diff OLD NEW
"""

from __future__ import annotations

from typing import Any

from releases.channels import CHANNELS, read_channel
from releases.collect import lineage
from releases.gates import METRIC, read_decision
from releases.manifest import MANIFEST, Manifest, check_release_id, released
from releases.object_store import ObjectStore
from releases.removal import removed_at
from releases.rollout import read as read_rollout
from releases.signing import signature_name, verify_signature


def read_manifest(store: ObjectStore, release_id: str) -> Manifest:
    """The manifest without reading the files; ValueError when there is no such release."""
    data = store.get(f"releases/{check_release_id(release_id)}/{MANIFEST}")
    if data is None:
        what = f"there is no release {release_id} in this store"
        if gone := removed_at(store, release_id):
            what = f"garbage collection removed release {release_id} from this store at {gone}"
        raise ValueError(f"{what}; see `onerec release list`")
    return Manifest.from_bytes(data, f"release {release_id}")


def list_releases(store: ObjectStore) -> list[dict[str, Any]]:
    """One dict a release, oldest day first: id, day, created_at, recall, gate (passed|failed|open), channels."""
    channels = {name: read_channel(store, name) for name in CHANNELS}
    rows = []
    for release_id in released(store):
        manifest, gate = read_manifest(store, release_id), read_decision(store, release_id)
        rows.append(
            {
                "release_id": release_id,
                "day": manifest.day,
                "created_at": manifest.created_at,
                "source": manifest.source,
                METRIC: _recall(manifest),
                "gate": "open" if gate is None else "passed" if gate["passed"] else "failed",
                "channels": [name for name, c in channels.items() if c and c.release_id == release_id],
            }
        )
    return rows


def show(store: ObjectStore, release_id: str) -> dict[str, Any]:
    """Which data, code and parents made this release: the manifest, lineage, signer, gates, rollout, channels."""
    manifest = read_manifest(store, release_id)
    pointing = [name for name in CHANNELS if (c := read_channel(store, name)) and c.release_id == release_id]
    shown = {f: getattr(manifest, f) for f in manifest.__dataclass_fields__ if f not in ("files", "gate")}
    signed = store.get(f"releases/{release_id}/{signature_name(manifest.to_bytes())}")
    by = verify_signature(manifest.to_bytes(), signed, f"release {release_id}") if signed else None
    shown |= {"signature": by or ("not checked: ONEREC_TRUSTED_KEYS is not set" if signed else "none")}
    shown |= {"lineage": lineage(store, release_id)}
    files = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.files]
    rollout = read_rollout(store)
    shown |= {"rollout": [m for m in rollout.history if m["release_id"] == release_id] if rollout else []}
    return shown | {"gate": read_decision(store, release_id), "channels": pointing, "files": files}


def diff(store: ObjectStore, old: str, new: str) -> dict[str, Any]:
    """What changed from release `old` to `new`: numeric metrics, files by digest, data partitions, scalars."""
    a, b = read_manifest(store, old), read_manifest(store, new)
    metrics_a, metrics_b = flatten(a.metrics), flatten(b.metrics)
    metrics = {
        key: {"old": metrics_a.get(key), "new": metrics_b.get(key)}
        for key in sorted(metrics_a | metrics_b)
        if metrics_a.get(key) != metrics_b.get(key)
    }
    scalars = {
        key: {"old": getattr(a, key), "new": getattr(b, key)}
        for key in ("source", "code_commit", "environment", "seed", "parents")
        if getattr(a, key) != getattr(b, key)
    }
    files = _changes({f.path: f.sha256 for f in a.files}, {f.path: f.sha256 for f in b.files})
    data = _changes(a.data, b.data)
    return {"old": old, "new": new, "metrics": metrics, "files": files, "data": data, "other": scalars}


def diff_text(difference: dict[str, Any]) -> str:
    """The difference for a terminal."""
    lines = [f"{difference['old']} -> {difference['new']}"]
    for key, change in difference["metrics"].items():
        numbers = [change["old"], change["new"]]
        step = f"  {numbers[1] - numbers[0]:+.4g}" if all(isinstance(n, int | float) for n in numbers) else ""
        lines.append(f"metric  {key}: {numbers[0]} -> {numbers[1]}{step}")
    for kind in ("files", "data"):
        for change, names in difference[kind].items():
            lines += [f"{kind:<6}  {change} {name}" for name in names]
    lines += [f"other   {key}: {c['old']} -> {c['new']}" for key, c in difference["other"].items()]
    return "\n".join(lines if len(lines) > 1 else [*lines, "no difference"])


def show_text(shown: dict[str, Any]) -> str:
    """One release for a terminal: what it is, its numbers, its checks, its files."""
    lines = [f"{shown['release_id']}  {shown['source']}  created {shown['created_at']}  seed {shown['seed']}"]
    lines.append(f"channels  {', '.join(shown['channels']) or 'none'}")
    lines.append(f"parents   {' <- '.join(shown['lineage']) or 'none (bootstrap)'}")
    lines.append(f"code      {shown['code_commit']}")
    lines += [f"locks     {name}: {digest}" for name, digest in sorted(shown["environment"].items())]
    lines.append(f"signed by {shown['signature']}")
    lines += [f"data      {name}: {str(digest)[:16]}" for name, digest in sorted(shown["data"].items())]
    lines += [f"metric    {key}: {value}" for key, value in flatten(shown["metrics"]).items()]
    for check in (shown["gate"] or {"checks": []})["checks"]:
        mark = "passed" if check["passed"] else "FAILED"
        side, interval, note = check.get("side", "at least"), check.get("interval"), check.get("note")
        more = (f"; gain {interval[0]:+.4g} to {interval[1]:+.4g}" if interval else "") + (f"; {note}" if note else "")
        lines.append(f"gate      {mark} {check['name']}: {check['value']} ({side} {check['limit']}{more})")
    for move in shown["rollout"]:
        seen = ", ".join(f"{k} {v}" for k, v in move.get("seen", {}).items())
        share = f" {move['percent']:g} %" if move["percent"] else ""
        lines.append(
            f"rollout   {move['at']} {move['stage']}{share}: {move['reason']}" + (f" ({seen})" if seen else "")
        )
    lines += [f"file      {f['sha256'][:12]} {f['size']:>12,} {f['path']}" for f in shown["files"]]
    return "\n".join(lines)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested metrics as {"a.b": leaf}; rows with a name are keyed by it, other lists (curves) are left out."""
    if isinstance(value, dict):
        parts = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items() if k != "name"]
        return {key: leaf for part in parts for key, leaf in part.items()}
    if isinstance(value, list):
        named = [flatten(row, f"{prefix}.{row['name']}") for row in value if isinstance(row, dict) and "name" in row]
        return {key: leaf for part in named for key, leaf in part.items()}
    return {prefix: value}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(k for k in set(old) & set(new) if old[k] != new[k]),
    }


def _recall(manifest: Manifest) -> float | None:
    metrics = flatten(manifest.metrics)
    return next((v for k, v in metrics.items() if k.endswith(f"rows.onerec.{METRIC}")), None)
