"""Where a day starts from, on a real release store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kfp_components.lineage import features_before, open_store, production_before, release_before
from kfp_components.promote.step import advance
from kfp_components.step import run_step
from kfp_components.workspace import Workspace, day_before
from releases.channels import read_channel
from releases.manifest import REQUIRED
from releases.publish import publish
from tests.releases.made_up import made_up


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=str(tmp_path / "var"), source="logs")


def released(w: Workspace, day: str, tmp_path: Path, *, outcomes: bool = True) -> str:
    """A day that ended: a published release of small files, and the outcomes of pathways and publish."""
    folder = tmp_path / "files" / day
    folder.mkdir(parents=True)
    files = {}
    for name in [*REQUIRED, "training_state/optimizer.safetensors"]:
        files[name] = folder / name.replace("/", "-")
        made_up(files[name], f"{name} of {day}")
    release_id = publish(
        store=open_store(w),
        day=day,
        source="logs",
        files=files,
        summaries={},
        metrics={},
        data={},
        parents=[],
        seed=0,
        code_commit="unknown",
        environment={},
    )

    def body(out: Path, progress) -> dict:
        (out / "release.json").write_text(json.dumps({"release_id": release_id}))
        return {"release_id": release_id}

    for step in ("pathways", "publish") if outcomes else ():
        run_step(workspace=w, day=day, step=step, inputs=[], rooms=("releases",), settings={}, body=body)
    return release_id


def test_an_empty_workspace_bootstraps(workspace) -> None:
    assert release_before(workspace, "2022-05-05") is None


def test_a_day_starts_from_the_release_of_the_day_before(workspace, tmp_path) -> None:
    release_id = released(workspace, "2022-05-05", tmp_path)
    before = release_before(workspace, "2022-05-06")
    assert before is not None and (before.day, before.release_id) == ("2022-05-05", release_id)
    with before.checkpoint() as folder:
        assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "optimizer.safetensors"}
        assert (
            (folder / "optimizer.safetensors")
            .read_bytes()
            .endswith(b"training_state/optimizer.safetensors of 2022-05-05")
        )


def test_the_first_day_bootstraps_again_when_it_runs_again(workspace, tmp_path) -> None:
    released(workspace, "2022-05-05", tmp_path)
    assert release_before(workspace, "2022-05-05") is None


def test_a_gap_names_the_missing_days_and_both_mends(workspace, tmp_path) -> None:
    released(workspace, "2022-05-02", tmp_path)
    with pytest.raises(ValueError) as caught:
        release_before(workspace, "2022-05-05")
    text = str(caught.value)
    assert "missing 2022-05-03 to 2022-05-04" in text and "another --root" in text
    assert "onerec backfill --from 2022-05-03 --to 2022-05-05" in text


def test_a_release_without_its_outcomes_is_a_gap_of_one_day(workspace, tmp_path) -> None:
    released(workspace, "2022-05-04", tmp_path, outcomes=False)
    with pytest.raises(ValueError, match=r"missing 2022-05-04 first \(onerec backfill --from 2022-05-04"):
        release_before(workspace, "2022-05-05")


def test_a_damaged_release_is_refused(workspace, tmp_path) -> None:
    release_id = released(workspace, "2022-05-05", tmp_path)
    (workspace.store / "releases" / release_id / "model" / "model.safetensors").write_text("other")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        release_before(workspace, "2022-05-06")


def test_channels_go_forward_only_and_evaluation_sees_the_production_of_before(workspace, tmp_path) -> None:
    store = open_store(workspace)
    ids = {day: released(workspace, day, tmp_path) for day in ("2022-05-04", "2022-05-05", "2022-05-06")}
    assert production_before(workspace, "2022-05-05") is None
    for day in ("2022-05-04", "2022-05-05", "2022-05-06"):
        assert advance(store, "production", ids[day], "test") == ids[day]
        assert production_before(workspace, day) == ids.get(day_before(day))
    assert production_before(workspace, "2022-05-05") == ids["2022-05-04"], "also when later days are in production"
    assert advance(store, "production", ids["2022-05-05"], "backfill") == ids["2022-05-06"]
    channel = read_channel(store, "production")
    assert channel is not None and channel.release_id == ids["2022-05-06"]


def test_features_go_on_from_features_although_no_release_was_made(workspace, tmp_path) -> None:
    def body(out: Path, progress) -> dict:
        (out / "pathways.json").write_text("{}")
        return {}

    assert features_before(workspace, "2022-05-05") is None
    run_step(
        workspace=workspace, day="2022-05-05", step="pathways", inputs=[], rooms=("releases",), settings={}, body=body
    )
    before = features_before(workspace, "2022-05-06")
    assert before is not None and (before.day, before.step) == ("2022-05-05", "pathways")
    assert features_before(workspace, "2022-05-05") is None and release_before(workspace, "2022-05-06") is None
    with pytest.raises(ValueError, match=r"missing 2022-05-06 to 2022-05-07 first \(onerec backfill --from 2022-05-06"):
        features_before(workspace, "2022-05-08")
