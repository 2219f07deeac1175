"""A made-up day for the tests of the report: real outcomes and a real release store, numbers and captions invented.

workspace = synthetic_day(tmp_path)
"""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path

from kfp_components.step import Outcome, run_step
from kfp_components.workspace import Workspace
from releases.channels import promote
from releases.gates import decide, record_decision
from releases.manifest import REQUIRED
from releases.object_store import DirectoryStore
from releases.publish import publish
from tests.releases.made_up import made_up

DAY, DAY_BEFORE = "2024-03-07", "2024-03-06"
EVIL = "<script>alert('caption')</script> & \"quoted\""
CAPTIONS = (EVIL, "a slow walk in the rain", "how to fold a map", "breakfast on a mountain", "两只猫在窗台上")
LABELS = ("click", "long_view", "like", "follow", "comment", "forward", "hate", "profile_enter")
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
    "gate": ("publish", "serve", "evaluate"),
    "promote": ("publish", "gate"),
}


def synthetic_day(root: Path, *, until: str = "promote", recall: float = 0.1987) -> Workspace:
    """A day whose steps up to `until` ran through run_step, after a day whose release is in production."""
    w, outcomes = Workspace(root=str(root), source="simulated"), {}
    store = DirectoryStore(w.store)
    before = publish_small(w, DAY_BEFORE, [])
    promote(store, before)
    clock = dt.datetime(2024, 3, 8, 1, tzinfo=dt.UTC)
    for index, (step, inputs) in enumerate(INPUTS.items()):
        metrics, files = metrics_of(step, recall), {}
        if step == "publish":
            metrics = {"release_id": publish_small(w, DAY, [before])}
        if step == "serve":
            users = served(outcomes["publish"].metrics["release_id"])
            files = {"recommendations.json": json.dumps({"users": users})}
        if step == "gate":
            judge(w, outcomes)
        outcomes[step] = run(w, step, [outcomes[i] for i in inputs], metrics, files)
        # Times are not part of the digest: these are like those of a real day.
        begun, clock = clock, clock + dt.timedelta(seconds=3 + 4 * index)
        times = {"started_at": begun.isoformat(), "ended_at": clock.isoformat(), "seconds": 4.25 + 4 * index}
        path = w.outcome(DAY, step)
        path.write_text(json.dumps(json.loads(path.read_text()) | times | {"peak_mib": 700.0 + 210 * index}))
        if step == until:
            break
    return w


def run(w: Workspace, step: str, inputs: list[Outcome], metrics: dict, files: dict[str, str]) -> Outcome:
    def body(out: Path, progress) -> dict:
        for name, text in {"result.txt": step, **files}.items():
            (out / name).write_text(text)
        return metrics

    rooms, settings = ("kfp_components/report",), {"files": files}
    return run_step(workspace=w, day=DAY, step=step, inputs=inputs, rooms=rooms, settings=settings, body=body)


def publish_small(w: Workspace, day: str, parents: list[str]) -> str:
    files = {name: w.base / "made" / day / name for name in REQUIRED}
    for path in files.values():
        made_up(path, f"made up for {day}")
    return publish(
        store=DirectoryStore(w.store),
        day=day,
        source=w.source,
        files=files,
        summaries={"feature_service": {"name": "onerec_v1", "features": "fea7" * 16}},
        metrics={},
        data={f"training/dt={day}": "ab12" * 16},
        parents=parents,
        seed=11,
        code_commit="c0ffee" * 6,
        environment={"ml.txt": "10c4" * 16, "triton.txt": "7217" * 16},
    )


def judge(w: Workspace, outcomes: dict[str, Outcome]) -> None:
    """As the steps gate and promote do: the gates' decision, and the channel moved by it."""
    store, release_id = DirectoryStore(w.store), outcomes["publish"].metrics["release_id"]
    quality, check = outcomes["validate"].metrics, outcomes["serve"].metrics
    metrics = outcomes["evaluate"].metrics
    decision = decide(metrics=metrics, data_quality=quality, serving_check=check)
    record_decision(store, release_id, decision)
    if decision.passed:
        promote(store, release_id)


def metrics_of(step: str, recall: float = 0.1987) -> dict:
    """Made-up numbers in the layout that each step leaves."""
    return {
        "ingest": _ingest,
        "validate": _quality,
        "tokenize": _tokenizer,
        "pretrain": _pretrain,
        "reward": _reward,
        "align": _align,
        "evaluate": lambda: _evaluation(recall),
        "pathways": lambda: {"rows": {"user_short": 9_100, "user_seen": 9_100}, "evaluation": "day 2024-03-08"},
        "materialize": lambda: {"users": 2_000},
        "publish": dict,
        "serve": lambda: {
            "legal": 1.0,
            "unseen": 1.0,
            "ready_seconds": 6.4,
            "latency_ms": {"p50": 31.2, "p99": 58.8, "max": 60.1, "requests": 29},
            "short": 0,
            "degraded": 0,
        },
        "gate": dict,
        "promote": dict,
    }[step]()


def served(release_id: str) -> list[dict]:
    """Ten users, ten items each; item 0 has the hostile caption, every third item has none."""
    items = [
        {
            "item_id": 900 + i,
            "title": CAPTIONS[i % 5] if i % 3 != 2 and i != 5 else None,
            "tags": [3, i],
            "score": 0.5 - i / 100,
            "sid": [1, 2, i],
        }
        for i in range(10)
    ]
    return [{"user_id": 40 + u, "cold_start": u == 9, "release_id": release_id, "items": items} for u in range(10)]


def _ingest() -> dict:
    days = [f"2024-03-{d:02d}" for d in range(1, 9)]
    rule_rows = {"rows_read": 112_000, "duplicates": 412, "too_late": 57, "play_time_negative": 9, "no_id": 0}
    return {
        "adapter": "contract_parquet",
        "timezone": "Asia/Shanghai",
        "days": days[:-1],
        "evaluation_day": days[-1],
        "tables": {f"impressions/dt={d}": {"rows": 15_000 + 321 * i, "digest": "ab"} for i, d in enumerate(days)},
        "counts": rule_rows | {"unknown_user": 1, "items.author_missing": 3},
    }


def _quality() -> dict:
    good = {"table": "impressions", "rule": "it is never null", "severity": "critical", "success": True}
    seen = {"expectation": "not_null", "expected": {}, "observed": 0, "unexpected_count": 0, "example": []}
    bad = {
        "table": "impressions",
        "day": DAY,
        "rule": "play times are believable",
        "expectation": "between",
        "expected": {"min_value": 0, "max_value": 86_400_000},
        "column": "play_time_ms",
        "severity": "warning",
        "success": False,
        "observed": 0.002,
        "unexpected_count": 33,
        "example": [{"user_id": 7, "surface": EVIL}, {"user_id": 8, "surface": "feed"}],
    }
    columns, days = ("user_id", "item_id", "event_time"), ("2024-03-06", DAY)
    checks = [good | seen | {"column": c, "day": d} for d in days for c in columns]
    return {"critical_failed": 0, "warning_failed": 1, "results": [*checks, bad]}


def _tokenizer() -> dict:
    sizes = (612, 540, 488, 431, 402, 377, 350, 329)
    tree = [
        {
            "code": 7 * i,
            "items": n,
            "next_codes": n // 9,
            "example": CAPTIONS[i % 5] if i < 5 else "",
            "top_tags": [{"tag": 12 + i, "share": 0.71 - i / 20}, {"tag": 3, "share": 0.11}],
            "children": [
                {
                    "code": 100 + i,
                    "items": 31,
                    "next_codes": 1,
                    "example": "",
                    "top_tags": [{"tag": 12 + i, "share": 0.94}],
                    "children": [{"code": 77, "items": 1, "example": "a single item", "top_tags": []}],
                }
            ],
        }
        for i, n in enumerate(sizes)
    ]
    return {
        "items": 7_583,
        "new_items": 212,
        "changed_ids": 0,
        "refit": False,
        "levels": 3,
        "codebook_size": 128,
        "utilization": [1.0, 0.9922, 0.9688],
        "entropy": [4.61, 4.52, 4.4],
        "max_entropy": math.log(128),
        "reconstruction_loss": 0.213,
        "collision_rate_before": 0.183,
        "collision_rate_after": 0.0,
        "changed_items": 4,
        "refit_reason": None,
        "drift": 1.07,
        "gates": [
            {"gate": "utilization", "value": 0.9688, "side": "at least", "limit": 0.9, "passed": True},
            {"gate": "churn", "value": None, "side": "at most", "limit": 0.9, "passed": None},
        ],
        "neighbours": {
            "tags": {"prefix_1": 0.61, "prefix_2": 0.83, "random": 0.07, "lift": 8.7},
            "viewers": {"prefix_1": None, "prefix_2": None, "random": None, "lift": None},
        },
        "code_tree": tree,
    }


def _pretrain() -> dict:
    curve = []
    for s in range(10, 1001, 10):
        levels = [2.6 + 2.2 * math.exp(-s / 150), 1.9 + 2.9 * math.exp(-s / 400), 0.7 + 4 * math.exp(-s / 200)]
        curve.append({"step": s, "loss": sum(levels), **{f"loss_c{i}": v for i, v in enumerate(levels)}})
    return {
        "loss": curve,
        "samples": 128_000,
        "targets": 512_345,
        "steps": 1_000,
        "epochs": 1,
        "seconds": 43.2,
        "expert_load": [[900.0, 1100.0, 1000.0, 1001.0], [400.0, 1600.0, 1000.0, 1001.0]],
        "parameters": 14_912_345,
    }


def _reward() -> dict:
    def ranking(start: float, i: int) -> dict:
        auc, gauc = start - i / 40, start - 0.15 - i / 50
        return {
            "auc": auc,
            "auc_interval": [auc - 0.013, auc + 0.013],
            "gauc": gauc,
            "gauc_interval": [gauc - 0.024, gauc + 0.024],
        }

    absent = {"auc": None, "auc_interval": None, "gauc": None, "gauc_interval": None}
    measured = {
        n: {
            "ece": 0.0093 + i / 700,
            "predicted_over_observed": 1.01 + i / 30,
            "positives": 4_000 >> 2 * i,
            "rows": 9_000,
        }
        for i, n in enumerate(LABELS)
    }
    p_score = {n: absent if n == "forward" else ranking(0.7, i) for i, n in enumerate(LABELS)}
    return {
        "loss": [{"step": s, "loss": 3.4 - s / 500} for s in range(10, 501, 10)],
        "rows": 24_000,
        "objectives": {n: ranking(0.73, i) | measured[n] for i, n in enumerate(LABELS)},
        "p_score": p_score,
        "hand_sum": {n: ranking(0.69, i) for i, n in enumerate(LABELS)},
        "p_score_auc": {n: p_score[n]["auc"] for n in LABELS},
    }


def _align() -> dict:
    curve = [
        {
            "step": s,
            "reward": 0.41 + 0.001 * s + 0.02 * math.sin(7 * s),
            "legality": 0.8 + 0.1 * (1 - math.exp(-s / 20)),
        }
        for s in range(1, 61)
    ]
    return {
        "curve": curve,
        "reward_before": 0.4102,
        "reward_after": 0.4713,
        "recall_probe_before": 0.2011,
        "recall_probe_after": 0.1997,
        "legality_before": 0.802,
        "legality_after": 0.8944,
        "kept": "aligned",
        "reason": "held-out recall 0.2011 -> 0.1997, limit 0.1951; reward 0.4102 -> 0.4713",
        "users": 256,
        "sessions": 7_001,
        "steps": 60,
        "objective": "ecpo",
        "on_policy_share": 0.25,
        "staleness_mean": 1.5,
        "grad_spikes": 0,
        "grad_norm_max": 11.25,
        "ratio_max": 2.3,
        "entropy_first": 7.04,
        "entropy_last": 6.49,
        "industrial": {"content farms": {"target": 0.05, "before": 0.091, "after": 0.062}},
    }


def _evaluation(recall: float) -> dict:
    rows = {"onerec": recall, "onerec_pretrained": 0.1972, "production": 0.1911}
    rows |= {"most_popular_all": 0.1481, "most_popular_3d": 0.1691}
    return {
        "production_release": "2024-03-06-0123456789ab",
        "users": 3_214,
        "rows": [
            _row(name, value) | ({"recall@50_gain_interval": [-0.01, 0.02]} if name == "production" else {})
            for name, value in rows.items()
        ],
        "legality": 1.0,
        "unconstrained_legality": 0.8312,
        "p_score_top10": 0.4721,
    }


def _row(name: str, recall: float) -> dict:
    values = {f"recall@{k}": recall * s for k, s in ((10, 0.4), (50, 1.0), (100, 1.45))}
    values |= {f"ndcg@{k}": recall * s for k, s in ((10, 0.21), (50, 0.35), (100, 0.42))}
    return {"name": name, **values, "recall@50_interval": [recall - 0.011, recall + 0.012]}
