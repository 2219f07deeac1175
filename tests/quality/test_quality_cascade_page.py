"""The page of the cascade: quality and cost of one system stand in one row, and costs are what the runs say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.quality import cascade_page


def model(name: str, recall: float, about: dict | None = None) -> dict:
    numbers = dict.fromkeys(("recall@10", "recall@50", "recall@100", "ndcg@10", "ndcg@50"), recall)
    spread = {f"{c}_sd": 0.001 for c in numbers}
    return {"model": name, "about": about or {}, "interval": [recall - 0.01, recall + 0.01]} | numbers | spread


def system(flops: dict[str, float], p50: float) -> dict:
    runs = [
        {"batch": b, "precision": "float32", "p50": p50 * t, "p99": 2 * p50, "peak_bytes": 2**20 * b, "mfu": 0.01}
        for b, t in ((1, 1), (64, 2))
    ]
    return {"flops": flops, "weight_bytes": 3 * 2**20, "runs": runs}


def test_the_page_sets_quality_beside_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [
        model("OneRec, once", 0.28),
        model("two-tower", 0.25),
        model("two-tower, then DIN + SIM", 0.2, {"candidates": 200}),
    ]
    cost = {
        "about": {
            "device": "a card",
            "torch": "2",
            "commit": "abc",
            "date": "d",
            "beam": 160,
            "items": 9,
            "repeats": 5,
        },
        "systems": {
            "OneRec": system({"context": 3e8, "decode 1": 1e8}, 4.0),
            "cascade, 100 candidates": system({"retrieval": 2e6, "ranking": 1e8}, 2.0),
            "cascade, 200 candidates": system({"retrieval": 2e6, "ranking": 2e8}, 1.0),
        },
    }
    for name, value in (("quality", {"models": models}), ("cost", cost)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    places = [f"--{n}={tmp_path / f}" for n, f in (("quality", "quality.json"), ("cost", "cost.json"), ("out", "o.md"))]
    monkeypatch.setattr(sys, "argv", ["x", *places, f"--figures={tmp_path}"])
    cascade_page.main()
    page = (tmp_path / "o.md").read_text()
    assert "| OneRec, once | 0.2800 ± 0.0010" in page and "| 0.2700 to 0.2900 | 400 |" in page
    assert "| 0.1900 to 0.2100 | 202 |" in page  # its 200 candidates, not 100
    assert "| 0.2400 to 0.2600 | 2 |" in page  # retrieval alone
    # 64 users in 8 ms: 8,000 users a second, 125 device seconds a million.
    assert "| OneRec | float32 | 4.00 (8.00) | 8.00 (8.00) | 8,000 | 125.0 | 1.00% | 3.0 | 64 |" in page
    for name in ("kuairand_recall.svg", "cascade.svg"):
        drawn = (tmp_path / name).read_text()
        assert "OneRec, once" in drawn and len(drawn) < 60_000


def test_lines_that_were_printed_become_rows(tmp_path: Path) -> None:
    lines = [f'{9 + s}.5 s  two-tower, then DIN + SIM, seed {s}: {{"recall@50": {0.2 + s / 100}}}' for s in (1, 3)]
    (tmp_path / "log.txt").write_text("something else\n" + "\n".join(lines))
    (row,) = cascade_page.printed([tmp_path / "log.txt"], {"alone": {"candidates": 100}, "joint": {"candidates": 200}})
    assert row["model"] == "two-tower, then DIN + SIM" and row["about"] == {"candidates": 100}
    assert row["recall@50"] == pytest.approx(0.22) and row["recall@50_sd"] == pytest.approx(0.02 / 2**0.5)
    assert row["interval"] is None
