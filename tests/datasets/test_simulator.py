"""The simulator: repeatable, atomic, learnable, and honest about the truth behind it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import world
from datasets.contract import IMPRESSIONS, ITEMS, POSITIVE_LABELS
from datasets.errors import DataError
from datasets.simulator import main, simulate, true_preference

END = date(2025, 1, 4)
SIZES = {"days": 4, "end": END, "users": 120, "items": 150, "impressions": 6000}


def quiet(text: str) -> None:
    pass


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulator") / "simulated"
    simulate(folder, **SIZES, seed=3, progress=quiet)
    return folder


@pytest.fixture(scope="module")
def log(out: Path) -> pa.Table:
    files = sorted((out / "impressions").rglob("*.parquet"))
    return pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)


def test_same_seed_same_bytes_other_seed_others(out: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "again", **SIZES, seed=3, progress=quiet)
    simulate(tmp_path / "other", **SIZES, seed=4, progress=quiet)
    assert digest(tmp_path / "again") == digest(out)
    assert digest(tmp_path / "other") != digest(out)


def test_tables_are_those_of_the_contract(out: Path, log: pa.Table) -> None:
    assert log.schema.equals(IMPRESSIONS)
    items = pq.read_table(out / f"items/dt={END}/part-0.parquet", partitioning=None)
    assert items.schema.equals(ITEMS)
    topics = list(world.WORDS)
    for row in items.to_pylist():
        assert topics[row["tags"][0]] in row["caption"]
    assert set(log["item_id"].to_pylist()) <= set(items["item_id"].to_pylist())


def test_items_appear_over_the_days_and_are_not_shown_before(out: Path, log: pa.Table) -> None:
    rows = [pq.read_metadata(f).num_rows for f in sorted((out / "items").rglob("*.parquet"))]
    assert rows == sorted(rows) and rows[0] < rows[-1] == 150
    uploaded = pq.read_table(out / f"items/dt={END}/part-0.parquet", partitioning=None)
    times = dict(zip(uploaded["item_id"].to_pylist(), uploaded["upload_time"].to_pylist()))
    assert all(times[item] <= at for item, at in zip(log["item_id"].to_pylist(), log["event_time"].to_pylist()))


def test_nothing_is_shown_twice_but_resent_rows(log: pa.Table) -> None:
    distinct = log.group_by(log.column_names).aggregate([])
    assert log.num_rows > distinct.num_rows > 0.98 * log.num_rows
    pairs = distinct.group_by(["user_id", "item_id"]).aggregate([])
    assert pairs.num_rows == distinct.num_rows


def test_every_signal_occurs_and_plays_are_credible(log: pa.Table) -> None:
    for name, low, high in (("is_click", 0.2, 0.7), ("is_long_view", 0.1, 0.6), ("is_like", 0.002, 0.1)):
        assert low < np.mean(log[name].to_numpy()) < high
    plays = log["play_time_ms"].to_numpy() / log["duration_ms"].to_numpy()
    assert plays.min() >= 0 and plays.max() <= 4
    assert set(log["position"].to_pylist()) == set(range(world.POSITIONS))


def test_a_personal_model_beats_popularity_on_it(out: Path, log: pa.Table) -> None:
    """Ranks each positive of the last day among the unseen items: by the truth, by popularity, by plain item k-NN."""
    days = np.array([str(r).rsplit("-", 1)[0] for r in log["request_id"].to_pylist()])
    user, item = log["user_id"].to_numpy() - 1, log["item_id"].to_numpy() - 1
    positive = np.any([log[name].to_numpy() == 1 for name in POSITIVE_LABELS], axis=0)
    old = days < str(END)
    liked_UI, seen_UI = np.zeros((120, 150)), np.zeros((120, 150), dtype=bool)
    liked_UI[user[old & positive], item[old & positive]] = 1
    seen_UI[user[old], item[old]] = True
    norm_I = np.linalg.norm(liked_UI, axis=0) + 2
    similar_II = liked_UI.T @ liked_UI / norm_I / norm_I[:, None]
    np.fill_diagonal(similar_II, 0)
    scores = {
        "truth": true_preference(out, END)[2],
        "popularity": np.tile(liked_UI.sum(0), (120, 1)),
        "item k-NN": liked_UI @ similar_II,
    }
    test = np.flatnonzero(~old & positive)
    recall = {}
    for name, score_UI in scores.items():
        ranked_UI = np.where(seen_UI, -np.inf, score_UI)
        better_N = (ranked_UI[user[test]] > ranked_UI[user[test], item[test]][:, None]).sum(1)
        recall[name] = np.mean(better_N < 20)
    assert recall["truth"] > 1.3 * recall["item k-NN"]
    assert recall["item k-NN"] > 1.2 * recall["popularity"]


def test_the_truth_drifts_and_explains_the_feedback(out: Path, log: pa.Table) -> None:
    users, items, first_UI = true_preference(out, date(2025, 1, 1))
    _, _, last_UI = true_preference(out, END)
    assert (users.tolist(), items.tolist()) == (list(range(1, 121)), list(range(1, 151)))
    same = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first_UI, last_UI)])
    assert 0.5 < same < 0.99
    score_N = first_UI[log["user_id"].to_numpy() - 1, log["item_id"].to_numpy() - 1]
    long_N = log["is_long_view"].to_numpy() == 1
    assert score_N[long_N].mean() > score_N[~long_N].mean() + 0.5


def test_unknown_day_of_the_truth(out: Path) -> None:
    with pytest.raises(DataError, match="simulates no 2024-01-01"):
        true_preference(out, date(2024, 1, 1))


def test_replaces_a_simulation_but_nothing_else(tmp_path: Path) -> None:
    small = {"days": 1, "end": END, "users": 5, "items": 20, "impressions": 40, "progress": quiet}
    simulate(tmp_path / "s", **small, seed=1)
    first = digest(tmp_path / "s")
    simulate(tmp_path / "s", **small, seed=2)
    assert digest(tmp_path / "s") != first
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="is no simulation"):
        simulate(tmp_path / "mine", **small, seed=1)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_killed_in_the_middle_nothing_is_visible(tmp_path: Path) -> None:
    code = f"""
import os
from datetime import date
from pathlib import Path
from datasets import simulator
simulator.simulate(Path({str(tmp_path / "s")!r}), days=3, end=date(2025, 1, 4), users=20, items=30, impressions=200,
                   progress=lambda text: os._exit(9))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 9
    assert not (tmp_path / "s").exists()


def test_impossible_sizes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot simulate 0 days"):
        simulate(tmp_path / "s", days=0, end=END)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path / "s"), "--end", "2025-01-04", "--days", "2", "--users", "10", "--items", "20"]
    main([*arguments, "--impressions", "100"])
    assert "is_long_view" in capsys.readouterr().out
    record = json.loads((tmp_path / "s" / "simulation.json").read_text())
    assert record["simulated"] and record["days"] == ["2025-01-03", "2025-01-04"]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "example: python -m datasets.simulator" in capsys.readouterr().out
