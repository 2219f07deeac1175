"""Publish a day: tokenizer, model, its exported program, reward, items and training state as one immutable release."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.digest import environment_locks
from kfp_components.lineage import code_commit, open_store, partition_digests, release_before
from kfp_components.step import Outcome
from releases.manifest import load_release
from releases.publish import publish

FEATURE_SERVICE = "onerec_v1"
EXPORT = "ONEREC_EXPORT"  # devices to compile for; a compiler's bytes differ, and the release's id follows the bytes
PARTS: dict[str, tuple[str, ...]] = {
    "tokenizer": ("tokenizer.json", "codebooks.safetensors", "sid_table.parquet", "trie.safetensors"),
    "model": ("model.safetensors", "config.json"),
    "reward": ("reward.safetensors", "config.json"),
    "training_state": ("optimizer.safetensors",),
}


def run(
    run: Run,
    *,
    tables: Outcome,
    quality: Outcome,
    features: Outcome,
    tokenizer: Outcome,
    model: Outcome,
    reward: Outcome,
    evaluation: Outcome,
) -> Outcome:
    """Writes release.json (the release's id). Metrics and warnings go into the manifest, not into the release's id."""
    w, before = run.workspace, release_before(run.workspace, run.day)
    store, items = open_store(run.workspace), run.workspace.partition("items", run.day)
    folders = {"tokenizer": tokenizer.path, "model": model.path, "reward": reward.path, "training_state": model.path}
    files = {f"{part}/{name}": folders[part] / name for part, names in PARTS.items() for name in names}

    def body(out: Path, progress) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            exported = export(Path(folder), tokenizer.path, model.path, w.partition("evaluation", run.day), progress)
            return publish_with(Path(folder), exported, out, progress)

    def publish_with(serving: Path, exported: Mapping[str, Any], out: Path, progress) -> dict[str, Any]:
        packed = {f"serving/{file.name}": file for file in serving.iterdir()}
        learned = w.training_sets(run.day, bootstrap=before is None)
        release_id = publish(
            store=store,
            day=run.day,
            source=w.source,
            files={**files, **packed, "items.parquet": items},
            summaries={
                "feature_service": {"name": FEATURE_SERVICE, "features": features.digest},
                "tokenizer": scalars(tokenizer.metrics),
                "model": scalars(model.metrics),
                "reward": scalars(reward.metrics),
            },
            metrics={
                "evaluation": evaluation.metrics,
                "data_quality_warnings": quality.metrics["warning_failed"]
                + features.metrics.get("quality", {}).get("warning_failed", 0),
                "reward": {"p_score_auc": reward.metrics["p_score_auc"]},
                "export": exported,
            },
            data=partition_digests([items, *learned]),
            parents=[before.release_id] if before else [],
            seed=run.seed,
            code_commit=code_commit(),
            environment=environment_locks(),
        )
        progress(f"release {release_id}")
        (out / "release.json").write_text(json.dumps({"release_id": release_id}) + "\n")
        return {"release_id": release_id, "parents": [before.release_id] if before else [], "export": exported}

    def published(metrics: Mapping[str, Any]) -> list[Path]:
        folder, manifest = load_release(store, metrics["release_id"])
        return [folder / entry.path for entry in manifest.files]

    inputs = [tables, quality, features, tokenizer, model, reward, evaluation, before.publish if before else None]
    return run.step(
        "publish", inputs=inputs, rooms=("releases", "serving/export", "models"), body=body, outside=published
    )


def export(out: Path, tokenizer: Path, model: Path, users: Path, progress) -> dict[str, Any]:
    """The compiled request of the day's model, if it equals the eager one on the evaluation's users.

    Lists of session-wise models are generated eagerly, and the report says so.
    """
    from models.training.checkpoint import Tokenizer, load_model
    from serving.export.package import export_release
    from serving.export.parity import real_users

    devices = [name for name in os.environ.get(EXPORT, "").split(",") if name]
    if wrong := set(devices) - {"cpu", "cuda"}:
        raise ValueError(f"{EXPORT} holds {min(wrong)!r}; give cpu, cuda, both with a comma between, or nothing")
    tok = Tokenizer.load(tokenizer)
    loaded = load_model(model, tok)
    if loaded.config.session_items > 1:
        return {"reason": "session-wise models are served eagerly"}
    if not devices:
        return {"reason": f"served eagerly; {EXPORT}=cpu (or cpu,cuda) compiles the request when a day is published"}
    found = real_users(users, tok, loaded.config)
    return export_release(model=loaded, tokenizer=tok, users=found, out=out, devices=devices, progress=progress)


def scalars(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and words of a step's metrics; curves and times are of the run, not of the release."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float | str | bool) and k != "seconds"}
