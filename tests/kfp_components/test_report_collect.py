"""What `collect` gathers from the outcomes of a made-up day, and what it refuses to mix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_day import DAY, EVIL, INPUTS, metrics_of, run, synthetic_day

from kfp_components.context import Run
from kfp_components.report.collect import collect
from kfp_components.report.page import render
from kfp_components.report.step import run as report_step
from kfp_components.step import Events, Outcome
from kfp_components.workspace import Workspace


@pytest.fixture
def day(tmp_path: Path) -> Workspace:
    return synthetic_day(tmp_path)


def test_a_whole_day_holds_every_step_unchanged(day):
    report = collect(day, DAY)
    assert report["missing"] == {} and json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["evaluation"] == metrics_of("evaluate") and report["align"] == metrics_of("align")
    assert [s["step"] for s in report["steps"]] == list(INPUTS)
    assert len(report["serving"]["users"]) == 10 and report["serving"]["legal"] == 1.0
    assert report["release"]["channels"]["production"] == report["release"]["release_id"]
    assert report["release"]["seed"] == 11 and report["first_day"] is False and report["simulated"] is True
    totals = report["totals"]
    assert totals["seconds"] == sum(4.25 + 4 * i for i in range(13)) and totals["seconds_limit"] == 360
    assert totals["seconds_elapsed"] == sum(3 + 4 * i for i in range(13))
    assert totals["peak_mib"] == 700 + 210 * 12 and totals["peak_step"] == "promote"
    assert {k: v["mark"] for k, v in report["verdict"].items() if isinstance(v, dict)} == {
        "recall": "good",
        "legality": "good",
        "quality": "warn",
        "time": "good",
        "memory": "good",
    }


@pytest.mark.parametrize(
    ("recall", "mark", "promoted"), [(0.1861, "good", True), (0.185, "warn", True), (0.14, "bad", False)]
)
def test_recall_is_judged_against_the_better_floor(tmp_path, recall, mark, promoted):
    verdict = collect(synthetic_day(tmp_path, recall=recall), DAY)["verdict"]
    assert verdict["recall"]["floor"] == 0.1691 and verdict["recall"]["floor_name"] == "most_popular_3d"
    assert verdict["recall"]["mark"] == mark
    assert verdict["mark"] == ("good" if promoted else "bad")
    assert verdict["headline"].startswith("Released and promoted" if promoted else "Published, not promoted")
    assert bool(verdict["reasons"]) is not promoted


def test_a_day_that_stopped_says_where_and_why(tmp_path):
    w = synthetic_day(tmp_path, until="reward")
    Events(w.progress(DAY), "align").write("failed", error=f"no users {EVIL}", log="x")
    report = collect(w, DAY)
    assert report["pretrain"] is not None and report["align"] is None and report["evaluation"] is None
    assert report["missing"]["align"] == f"the step align failed: no users {EVIL} (log: logs/align.log)"
    assert report["missing"]["evaluation"] == "the step evaluate did not run"
    assert report["verdict"]["mark"] == "bad" and report["verdict"]["reasons"] == [report["missing"]["align"]]
    assert report["verdict"]["recall"]["value"] is None and report["totals"]["seconds_elapsed"] is None


def test_a_failed_step_hides_what_an_earlier_run_left(day):
    Events(day.progress(DAY), "evaluate").write("failed", error="no memory", log="x")
    report = collect(day, DAY)
    assert "no memory" in report["missing"]["evaluation"] and report["release"] is None and report["align"] is not None


def test_results_of_an_earlier_run_are_not_mixed_in(day):
    inputs = [Outcome.read(day.step_dir(DAY, s)) for s in INPUTS["pretrain"]]
    run(day, "pretrain", inputs, metrics_of("pretrain"), {"model": "another"})
    report = collect(day, DAY)
    assert report["pretrain"] is not None and report["reward"] is not None
    assert report["align"] is None and report["evaluation"] is None and report["serving"] is None
    assert "an earlier run of pretrain" in report["missing"]["align"]
    assert "an earlier run of align" in report["missing"]["evaluation"]


def test_an_empty_day_and_half_a_progress_line(tmp_path):
    w = Workspace(root=str(tmp_path), source="mine")
    w.progress(DAY).parent.mkdir(parents=True)
    w.progress(DAY).write_text('{"step": "ingest", "event": "started", "at": 1}\n[]\n{"step": "ing')
    report = collect(w, DAY)
    assert report["missing"]["data"].startswith("the step ingest was cut off")
    assert all("missing" in step for step in report["steps"]) and report["data_label"] == "logs of mine"
    assert render(report).count("Missing:") == len(report["missing"])


def test_the_checks_that_stopped_the_day_are_shown(tmp_path):
    w = synthetic_day(tmp_path, until="ingest")
    results = w.run_dir(DAY) / "quality" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(metrics_of("validate") | {"critical_failed": 1}))
    assert collect(w, DAY)["quality"] is None, "a file of some earlier run"
    events = Events(w.progress(DAY), "validate")
    events.write("started")
    results.write_text(json.dumps(metrics_of("validate") | {"critical_failed": 1}))
    events.write("failed", error="user_id is missing", log="x")
    report = collect(w, DAY)
    assert report["quality"]["critical_failed"] == 1 and "quality" not in report["missing"]
    assert report["verdict"]["quality"]["mark"] == "bad" and "user_id is missing" in report["verdict"]["reasons"][0]


def test_checks_of_the_pathway_tables_join_those_of_the_day(tmp_path):
    w = synthetic_day(tmp_path)
    alone = collect(w, DAY)["quality"]
    path = w.outcome(DAY, "pathways")
    outcome = json.loads(path.read_text())
    outcome["metrics"]["quality"] = metrics_of("validate")
    path.write_text(json.dumps(outcome))
    joined = collect(w, DAY)
    assert joined["quality"]["warning_failed"] == 2 * alone["warning_failed"] == 2
    assert len(joined["quality"]["results"]) == 2 * len(alone["results"])
    assert "quality" not in joined["pathways"]


def test_reused_steps_are_marked_and_the_wall_clock_is_left_out(day):
    run(day, "ingest", [], metrics_of("ingest"), {})
    report = collect(day, DAY)
    assert [s["step"] for s in report["steps"] if s["reused"]] == ["ingest"]
    assert report["totals"]["seconds_elapsed"] is None and report["totals"]["seconds_reused"] == 4.25
    html = render(report)
    assert "4.2 s (reused)" in html and "of which 4.2 s reused" in html


def test_the_step_puts_the_page_where_people_look_and_writes_it_again_when_a_step_ran_again(day):
    decision = Outcome.read(day.step_dir(DAY, "promote"))
    one = Run(workspace=day, day=DAY, seed=11)
    first = report_step(one, decision=decision)
    assert first.metrics == {"missing": {}} and set(first.inputs) == {f"{DAY}/{step}" for step in INPUTS}
    for name in ("report.html", "report.json"):
        assert (day.run_dir(DAY) / name).read_bytes() == (first.path / name).read_bytes()
    assert report_step(one, decision=decision).reused
    file = day.outcome(DAY, "align")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ended_at": "2030-01-01T00:00:00+00:00"}))
    assert not report_step(one, decision=decision).reused
