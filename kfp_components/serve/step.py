"""Serve a day: a real Triton server on the published release answers ten users over gRPC, and every item is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.lineage import open_store
from kfp_components.step import Outcome
from kfp_components.workspace import put_file
from releases.manifest import load_release

USERS, ITEMS_A_USER = 10, 10
FILE = "recommendations.json"
ROOMS = ("serving", "models", "feature_repo", "datasets/contract.py", "datasets/partitions.py")


def run(run: Run, *, release: Outcome, features: Outcome, online: Outcome) -> Outcome:
    """Writes recommendations.json, also into the run's folder. Latencies are metrics: they never enter a digest."""
    w = run.workspace
    release_id = release.metrics["release_id"]

    def body(out: Path, progress) -> dict[str, Any]:
        from serving.check import serve_check

        folder, _ = load_release(open_store(w), release_id)
        found = serve_check(
            release=folder,
            features=w.features,
            feature_store=w.feature_store,
            items=folder / "items.parquet",
            users=None,
            count=USERS,
            k=ITEMS_A_USER,
            log=w.log(run.day, "triton"),
            progress=progress,
        )
        kept = {"release_id": release_id, **{key: found[key] for key in ("legal", "unseen", "users")}}
        (out / FILE).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        return found

    outcome = run.step("serve", inputs=[release, features, online], rooms=ROOMS, body=body)
    put_file(outcome.path / FILE, w.run_dir(run.day) / FILE)
    return outcome
