"""The benchmark's one command on a tiny workspace: every cell of its table is there and is what the seeds gave."""

from __future__ import annotations

import re
import shutil

import pytest

from benchmarks.alignment.pscore import gap_cell, main, spread
from models.reward.quality import Estimate
from tests.models.conftest import simulate_days


def test_it_writes_a_table_of_what_it_measured(world, tmp_path):
    days = simulate_days(tmp_path / "features" / "training", users=300, items=48, days=2, shown=8, seed=3)
    assert days[-1].parent.name == "dt=2022-05-06"
    shutil.copytree(world.tokenizer, tmp_path / "days" / "2022-05-06" / "tokenize")
    items = tmp_path / "lake" / "items" / "dt=2022-05-06" / "part-0.parquet"
    items.parent.mkdir(parents=True)
    shutil.copy(world.items, items)
    arguments = {"workspace": tmp_path, "day": "2022-05-06", "epochs": 1, "out": tmp_path / "table.md"}
    main([word for key, value in arguments.items() for word in (f"--{key}", str(value))] + ["--seeds", "1", "2"])
    text = (tmp_path / "table.md").read_text()
    assert re.search(r"commit `.+`, seeds \[1, 2\], 2 x 9 models", text) and "--day 2022-05-06" in text
    for name in ("click", "long_view", "like", "hate"):  # the source shows these; the others never
        rows = [line.split("|")[2:-1] for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert [len(row) for row in rows] == [7, 4, 2]
        for cell in rows[0][1:5] + rows[1]:
            assert re.fullmatch(r" 0\.\d{4} ± \d+\.\d{4} ", cell)
    assert "follow" not in text


def test_cells_by_hand():
    one, two = Estimate(0.1, 0.05, 0.2), Estimate(0.2, 0.15, 0.4)
    assert spread([one, two]) == f"0.1500 ± {12.706 * 0.05:.4f}" and spread([one]) == "0.1000" and spread([]) == "-"
    assert gap_cell([one, two]) == "**+0.1500 (+0.1000, +0.3000)**"
    assert gap_cell([one, Estimate(0.0, -0.2, 0.2)]) == "+0.0500 (-0.0750, +0.2000)"


def test_a_day_that_has_not_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"2022-05-06.*make daily"):
        main(["--workspace", str(tmp_path), "--day", "2022-05-06", "--out", str(tmp_path / "table.md")])
