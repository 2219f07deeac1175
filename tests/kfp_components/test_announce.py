"""What the exit task of a pipeline tells."""

from __future__ import annotations

import json
from types import SimpleNamespace

from kfp_components.announce.step import FILE, run
from kfp_components.step import Events
from kfp_components.workspace import Workspace

DAY = "2022-05-05"


def status(state: str, error: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(state=state, pipeline_job_resource_name="runs/7", error_message=error)


def announced(w: Workspace, pipeline: str, **fields) -> dict:
    run(pipeline=pipeline, day=DAY, root=w.root, source=w.source, status=status(**fields))
    return json.loads((w.run_dir(DAY) / FILE).read_text().splitlines()[-1])


def test_a_good_end_is_a_line_and_a_bad_one_names_step_and_error(tmp_path, capsys) -> None:
    w = Workspace(root=str(tmp_path), source="s")
    good = announced(w, "tokenizer", state="SUCCEEDED")
    assert (good["pipeline"], good["state"], good["run"]) == ("tokenizer", "SUCCEEDED", "runs/7") and "step" not in good
    Events(w.progress(DAY), "ingest").failed(ValueError("bad log"), tmp_path / "log")
    Events(w.progress(DAY), "reward").failed(ValueError("no users"), tmp_path / "log")
    bad = announced(w, "training", state="FAILED", error="task reward failed")
    assert (bad["step"], bad["error"]) == ("reward", "no users")  # not the failure of another pipeline
    assert "ended as FAILED at step reward: no users; next: read" in capsys.readouterr().out


def test_a_killed_step_left_no_word_so_kfps_own_stands(tmp_path) -> None:
    w = Workspace(root=str(tmp_path), source="s")
    events = Events(w.progress(DAY), "reward")
    events.failed(ValueError("of the try before"), tmp_path / "log")
    events.write("started")
    bad = announced(w, "training", state="FAILED", error="OOMKilled")
    assert (bad["step"], bad["error"]) == ("?", "OOMKilled")


def test_a_webhook_that_is_down_fails_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ONEREC_ALERT_URL", "http://127.0.0.1:9/alerts")
    bad = announced(Workspace(root=str(tmp_path), source="s"), "canary", state="CANCELED")
    assert bad["state"] == "CANCELED" and "did not take it" in capsys.readouterr().out
