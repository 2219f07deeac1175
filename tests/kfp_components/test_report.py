"""The report of a synthetic day: real outcomes, a real release store, made-up numbers (see `synthetic_day`)."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kfp_components.report.collect import collect
from kfp_components.report.page import count, duration, gib, number, render, share, write_report
from kfp_components.step import Events, Outcome, run_step
from kfp_components.workspace import OUTCOME, Workspace
from releases.channels import promote
from releases.gates import decide, record_decision
from releases.manifest import REQUIRED
from releases.object_store import DirectoryStore
from releases.publish import publish

DAY = "2024-03-07"
EVIL = "<script>alert('caption')</script> & \"quoted\""
SECTIONS = ("data", "tokenizer", "pretrain", "evaluation", "reward", "align", "cost", "serving", "provenance")
INPUTS = {
    "ingest": (),
    "validate": ("ingest",),
    "pathways": ("ingest", "validate"),
    "materialize": ("pathways",),
    "tokenize": ("pathways",),
    "pretrain": ("tokenize", "pathways"),
    "reward": ("tokenize", "pathways"),
    "align": ("pretrain", "reward"),
    "evaluate": ("align", "reward", "pathways"),
    "publish": ("evaluate", "align", "validate"),
    "serve": ("publish", "materialize"),
    "promote": ("publish", "serve", "evaluate"),
}


def row(name: str, recall: float) -> dict:
    values = {f"recall@{k}": recall * s for k, s in ((10, 0.4), (50, 1.0), (100, 1.45))}
    values |= {f"ndcg@{k}": recall * s for k, s in ((10, 0.21), (50, 0.35), (100, 0.42))}
    return {"name": name, **values, "recall@50_interval": [recall - 0.011, recall + 0.012]}


def metrics_of(step: str) -> dict:
    """Made-up numbers in the layout that each room returns."""
    days = [f"2024-03-{d:02d}" for d in range(1, 8)]
    labels = ("click", "long_view", "like", "follow", "comment", "forward", "hate", "profile_enter")
    failed = {"expectation": "values_between 0 and 86400000", "column": "play_time_ms", "severity": "warning"}
    tables = {
        f"impressions/dt={d}": {"rows": 15_000 + 321 * i, "digest": "ab12"} for i, d in enumerate([*days, "2024-03-08"])
    }
    check = {"table": "impressions", "expectation": "column exists", "column": "user_id", "severity": "critical"}
    checks = [check | {"column": c, "success": True, "observed": None} for c in ("user_id", "item_id", "event_time")]
    bad = {"table": "impressions", "success": False, "observed": "0.2 %", "unexpected_count": 33, "example": EVIL}
    tree = {
        "code": 7,
        "items": 188,
        "second_level_codes": 41,
        "example": EVIL,
        "top_tags": [{"tag": 12, "share": 0.71}],
    }
    alignment = [
        {"step": s, "reward": 0.41 + 0.002 * s + 0.01 * math.sin(7 * s), "legality": 0.6 + 0.004 * s, "grad_norm": 1.0}
        for s in range(1, 61)
    ]
    items = [
        {"item_id": 900 + i, "title": None if i % 2 else EVIL, "tags": [3, i], "score": 0.5 - i / 100, "sid": [1, 2, i]}
        for i in range(10)
    ]
    return {
        "ingest": {
            "adapter": "contract_parquet",
            "timezone": "Asia/Shanghai",
            "days": days,
            "evaluation_day": "2024-03-08",
            "tables": tables,
            "counts": {
                "duplicates_dropped": 412,
                "late": 57,
                "unknown_items": 3,
                "unknown_users": 1,
                "play_negative": 9,
            },
        },
        "validate": {"critical_failed": 0, "warning_failed": 1, "results": [*checks, bad | failed]},
        "pathways": {"users": 2_000, "rows": {"user_short": 9_100}},
        "materialize": {"rows": 8_000},
        "tokenize": {
            "items": 7_583,
            "new_items": 7_583,
            "changed_ids": 0,
            "refit": True,
            "levels": 3,
            "codebook_size": 128,
            "utilization": [1.0, 0.9922, 0.9688],
            "entropy": [4.61, 4.52, 4.4],
            "max_entropy": math.log(128),
            "reconstruction_loss": 0.213,
            "collision_rate_before": 0.183,
            "collision_rate_after": 0.0,
            "code_tree": [{**tree, "code": i} for i in range(8)],
        },
        "pretrain": {
            "loss": [
                {"step": s, "loss": sum(c), "loss_c0": c[0], "loss_c1": c[1], "loss_c2": c[2]}
                for s in range(10, 1001, 10)
                for c in [
                    [4.85 * (0.55 + 0.45 * math.exp(-s / 150)), 4 * math.exp(-s / 400) + 0.8, 4 * math.exp(-s / 200)]
                ]
            ],
            "samples": 128_000,
            "targets": 512_345,
            "steps": 1_000,
            "epochs": 1,
            "seconds": 143.2,
            "expert_load": [[900.0, 1100.0, 1000.0, 1001.0], [400.0, 1600.0, 1000.0, 1001.0]],
            "parameters": 14_912_345,
        },
        "reward": {
            "loss": [{"step": s, "loss": 3.4 - s / 500} for s in range(10, 501, 10)],
            "rows": 24_000,
            "objectives": {
                n: {"auc": 0.73 - i / 40, "positives": 4_000 >> 2 * i, "rows": 9_000} for i, n in enumerate(labels)
            },
            "p_score_auc": {n: None if n == "forward" else 0.7 - i / 40 for i, n in enumerate(labels)},
        },
        "align": {
            "curve": alignment,
            "reward_before": 0.4102,
            "reward_after": 0.4713,
            "recall_probe_before": 0.2011,
            "recall_probe_after": 0.1997,
            "legality_before": 0.602,
            "legality_after": 0.8344,
            "kept": "aligned",
            "reason": "recall of the probe 0.2011 -> 0.1997, limit 0.1951",
            "users": 256,
            "sessions": 7_001,
        },
        "evaluate": {
            "users": 3_214,
            "rows": [
                row("onerec", 0.1987),
                row("onerec_pretrained", 0.1972),
                row("production", 0.1911),
                row("most_popular_all", 0.1481),
                row("most_popular_3d", 0.1691),
            ],
            "legality": 1.0,
            "unconstrained_legality": 0.8312,
            "p_score_top10": 0.4713,
        },
        "serve": {
            "legal": 1.0,
            "unseen": 1.0,
            "ready_seconds": 6.4,
            "latency_ms": {"p50": 31.2, "p99": 58.8},
            "users": [
                {
                    "user_id": 40 + u,
                    "cold_start": u == 9,
                    "release_id": "",
                    "items": [i | {"item_id": i["item_id"] + u} for i in items],
                }
                for u in range(10)
            ],
        },
        "promote": {"promoted": True},
    }[step]


def synthetic_day(root: Path, *, until: str = "promote") -> Workspace:
    """A day whose steps up to `until` ran through run_step, with a published, judged and promoted release."""
    w, outcomes = Workspace(root=str(root), source="simulated"), {}
    store = DirectoryStore(w.store)
    for index, (step, before) in enumerate(INPUTS.items()):
        if step == "publish":
            files = {name: root / "files" / name for name in REQUIRED}
            for path in files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("made up")
            said = {
                "summaries": {"feature_service": "onerec_v1"},
                "metrics": {},
                "data": {"impressions/dt=2024-03-07": "ab12"},
            }
            made = {"parents": [], "seed": 11, "code_commit": "c0ffee" * 6, "environment": {"ml.txt": "10c4" * 16}}
            metrics = {"release_id": publish(store=store, day=DAY, source=w.source, files=files, **said, **made)}
        else:
            metrics = metrics_of(step)
        if step == "serve":
            metrics["users"] = [u | {"release_id": outcomes["publish"].metrics["release_id"]} for u in metrics["users"]]
        if step == "promote":
            checks = {
                "metrics": metrics_of("evaluate"),
                "data_quality": metrics_of("validate"),
                "serving_check": metrics_of("serve"),
            }
            release_id = outcomes["publish"].metrics["release_id"]
            record_decision(store, release_id, decide(production_metrics=None, **checks))
            promote(store, release_id)
        outcomes[step] = run(w, step, [outcomes[b] for b in before], metrics)
        path = w.outcome(DAY, step)  # times are not part of the digest: make them look like those of a real day
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"seconds": 7.5 + 13 * index, "peak_mib": 700.0 + 310 * index})
        )
        if step == until:
            break
    return w


def run(w: Workspace, step: str, inputs: list[Outcome], metrics: dict, text: str = "") -> Outcome:
    def body(out: Path, progress) -> dict:
        (out / "result.txt").write_text(step + text)
        return metrics

    return run_step(
        workspace=w,
        day=DAY,
        step=step,
        inputs=inputs,
        rooms=("kfp_components/report",),
        settings={"text": text},
        body=body,
    )


class Page(HTMLParser):
    """What a browser would see: the text, the ids, the references and the nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open, self.ids, self.references = "", [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [v for k, v in attributes if k == "id"]
        self.references += [v for k, v in attributes if k in ("src", "href", "srcset", "xlink:href", "action", "data")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        self.text += "\n" if tag in ("td", "th", "dt", "dd", "p", "h2") else ""
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def day(tmp_path_factory) -> Workspace:
    return synthetic_day(tmp_path_factory.mktemp("day"))


@pytest.fixture(scope="module")
def report(day: Workspace) -> dict:
    return collect(day, DAY)


def test_every_section_is_there_and_the_page_is_well_formed(report):
    page = Page(render(report))
    assert page.open == []
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert report["missing"] == {} and "Missing." not in page.text
    assert "Released and promoted to production" in page.text
    tables = [tag for tag, _ in page.tags if tag == "table"]
    assert len(tables) == len([tag for tag, _ in page.tags if tag == "caption"]) >= 9
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(drawings) == 10 and all(len(a["aria-label"]) > 40 for a in drawings)


def test_the_page_shows_the_numbers_of_report_json(day, report, tmp_path):
    write_report(report, tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == report
    text = " ".join(Page((tmp_path / "report.html").read_text()).text.split())
    for values in saved["evaluation"]["rows"]:
        for key, value in values.items():
            for one in value if isinstance(value, list) else [value]:
                assert key == "name" or number(one) in text, (values["name"], key)
    for step in saved["steps"]:
        assert duration(step["seconds"]) in text and gib(step["peak_mib"]) in text and step["digest"] in text
    for name, values in saved["reward"]["objectives"].items():
        assert number(values["auc"], 3) in text and count(values["positives"]) in text, name
    for name, n in saved["data"]["counts"].items():
        assert f"{name.replace('_', ' ')} {n}" in text
    for key in ("reward_before", "reward_after", "recall_probe_before", "recall_probe_after"):
        assert number(saved["align"][key]) in text
    for value in (*saved["tokenizer"]["utilization"], saved["tokenizer"]["collision_rate_before"]):
        assert share(value) in text
    release = saved["release"]
    for value in (release["release_id"], release["code_commit"], release["environment"]["ml.txt"], "seed 11"):
        assert value in text
    assert number(saved["verdict"]["recall"]["floor"]) == "0.1691" and "17.5 % above the better floor 0.1691" in text


def test_text_of_users_is_escaped(report):
    html = render(report)
    assert "<script" not in html and "&lt;script&gt;alert(" in html
    assert Page(html).text.count(EVIL) == 1 + 8 + 50  # the failed check, the code tree, half of the items


def test_the_page_needs_nothing_from_elsewhere_and_is_small(report):
    html = render(report)
    assert set(Page(html).references) <= {"data:,"} | {f"#{s}" for s in SECTIONS}
    assert not re.search(r"https?:|@import|url\(|//[a-z]", html)
    assert len(html.encode()) < 200_000


def test_simulated_numbers_say_so_in_every_section_and_real_ones_never(report):
    page = Page(render(report))
    assert page.text.count("simulated logs") > len(SECTIONS) and "real logs" not in page.text
    chips = [a for tag, a in page.tags if tag == "span" and a.get("class") == "chip"]
    assert len(chips) == len(SECTIONS)
    real = render(report | {"simulated": False, "data_label": "real logs", "source": "mine"})
    assert "imulated" not in Page(real).text


def test_a_day_that_stopped_shows_what_is_missing_and_why(tmp_path):
    w = synthetic_day(tmp_path, until="reward")
    Events(w.progress(DAY), "align").write("failed", error=f"no users <b>{EVIL}", log="x")
    report = collect(w, DAY)
    assert report["align"] is None and report["evaluation"] is None and report["release"] is None
    assert report["verdict"]["mark"] == "bad" and report["verdict"]["recall"]["value"] is None
    assert report["totals"]["seconds_elapsed"] is None
    html = render(report)
    assert "<script" not in html and "<b>" not in html
    text = Page(html).text
    assert "the step align failed: no users" in text and "the step evaluate did not run" in text
    assert f"The same numbers: report.json" in text and number(report["tokenizer"]["max_entropy"], 2) in text


def test_a_day_without_any_step_and_half_a_progress_line(tmp_path):
    w = Workspace(root=str(tmp_path), source="mine")
    w.progress(DAY).parent.mkdir(parents=True)
    w.progress(DAY).write_text('{"step": "ingest", "event": "started", "at": 1}\n{"step": "ing')
    report = collect(w, DAY)
    assert report["missing"]["data"].startswith("the step ingest was cut off")
    assert set(report["missing"]) == {*INPUTS} - {"ingest", "validate", "tokenize", "evaluate", "publish", "serve", "promote"} | {
        "data", "quality", "tokenizer", "evaluation", "serving", "release"
    }  # fmt: skip
    assert Page(render(report)).open == []


def test_results_of_an_earlier_run_are_not_mixed_in(tmp_path):
    w = synthetic_day(tmp_path)
    again = run(w, "pretrain", [Outcome.read(w.step_dir(DAY, s)) for s in ("tokenize", "pathways")], {}, text=" anew")
    assert again.digest != Outcome.read(w.step_dir(DAY, "align")).inputs[f"{DAY}/pretrain"]
    report = collect(w, DAY)
    assert report["reward"] is not None and report["align"] is None and report["serving"] is None
    assert (
        "earlier run of pretrain" in report["missing"]["align"]
        and "earlier run of align" in report["missing"]["evaluation"]
    )


def test_reused_steps_are_marked_and_wall_clock_is_left_out(tmp_path):
    w = synthetic_day(tmp_path)
    assert collect(w, DAY)["totals"]["seconds_elapsed"] is not None
    run(w, "ingest", [], metrics_of("ingest"))
    report = collect(w, DAY)
    assert [s["step"] for s in report["steps"] if s["reused"]] == ["ingest"]
    assert report["totals"]["seconds_elapsed"] is None and report["totals"]["seconds_reused"] == 7.5
    assert "7.5 s (reused)" in Page(render(report)).text


def test_a_failed_gate_is_the_first_thing_one_reads(tmp_path):
    w = synthetic_day(tmp_path, until="serve")
    store, release_id = DirectoryStore(w.store), collect(w, DAY)["release"]["release_id"]
    low = metrics_of("evaluate") | {"rows": [row("onerec", 0.1), row("most_popular_all", 0.1481)]}
    parts = {"data_quality": metrics_of("validate"), "serving_check": metrics_of("serve")}
    record_decision(store, release_id, decide(metrics=low, production_metrics=None, **parts))
    report = collect(w, DAY)
    assert report["verdict"]["mark"] == "bad" and "not promoted" in report["verdict"]["headline"]
    assert report["verdict"]["recall"]["mark"] == "bad"
    assert "recall@50 against the best most-popular floor is 0.1, the limit is 0.1481" in Page(render(report)).text


def test_numbers_that_a_step_does_not_give_are_dashes(report):
    bare = {
        name: {"other": 1}
        for name in ("data", "quality", "tokenizer", "pretrain", "reward", "align", "evaluation", "serving")
    }
    page = Page(render(report | bare))
    assert page.open == [] and "–" in page.text


def test_a_write_that_fails_leaves_the_old_report_whole(report, tmp_path):
    write_report(report, tmp_path)
    old = (tmp_path / "report.html").read_text(), (tmp_path / "report.json").read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_report(report | {"source": "other", "tokenizer": {"entropy": [math.nan]}}, tmp_path)
    assert old == ((tmp_path / "report.html").read_text(), (tmp_path / "report.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "100 %"), (0.99996, "over 99.9 %"), (0.9994, "99.9 %"), (0.0001, "under 0.1 %"), (0, "0 %"), (None, "–")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(value, shown):
    assert share(value) == shown
