"""Every alignment benchmark runs a variant on a tiny prepared folder; intervals and tables are what they say."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.alignment import (
    format_reward,
    group_size,
    harness,
    industrial,
    policies,
    rollout_speed,
    selection,
    true_reward,
)
from benchmarks.alignment.measure import Evaluation, configure
from benchmarks.alignment.truth import truth
from models.reward.session import train_session
from models.reward.train import train_reward
from models.training.pretrain import PretrainConfig, pretrain
from tests.models.conftest import FIRST_DAY_S

DIM = 4


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory) -> Path:
    """What `prepare.py` copies, made from the tests' world, with a truth drawn at random."""
    out = tmp_path_factory.mktemp("prepared")
    for name in ("model", "reward"):
        (out / name).mkdir()
    common = {"training_sets": world.training, "tokenizer": world.tokenizer, "seed": 1, "progress": lambda _: None}
    pretrain(**common, previous=None, out=out / "model", config=PretrainConfig(min_steps=1, batch_size=16))
    train_reward(**common, previous=None, out=out / "reward")
    train_session(**common, reward=out / "reward", out=out / "reward")
    shutil.copytree(world.tokenizer, out / "tokenizer")
    shutil.copyfile(world.training[-1], out / "training.parquet")
    shutil.copyfile(world.evaluation, out / "evaluation.parquet")
    items = pq.read_table(world.items)
    uploaded = pa.array([FIRST_DAY_S * 1000] * len(items), pa.timestamp("ms", "UTC"))
    pq.write_table(items.append_column("upload_time", uploaded), out / "items.parquet")
    rng = np.random.default_rng(0)
    (out / "truth").mkdir()
    day = pa.array([date(2022, 5, 7)] * 64, pa.date32())
    taste = pa.array(rng.normal(size=(64, DIM)).tolist())
    pq.write_table(pa.table({"user_id": np.arange(64), "dt": day, "taste": taste}), out / "truth" / "tastes.parquet")
    vector, quality = pa.array(rng.normal(size=(48, DIM)).tolist()), rng.normal(size=48)
    pq.write_table(
        pa.table({"item_id": np.arange(48), "vector": vector, "quality": quality}), out / "truth" / "items.parquet"
    )
    return out


@pytest.fixture
def args(prepared) -> argparse.Namespace:
    return argparse.Namespace(
        prepared=prepared,
        device="cpu",
        steps=2,
        users=12,
        widest=8,
        points=2,
        users_per_step=4,
        factor=0.5,
        batch=4,
        rounds=1,
    )


@pytest.mark.parametrize(
    "module, variant",
    [
        (policies, "pretrained"),
        (policies, "ecpo, daily weights"),
        (policies, "dpo"),
        (policies, "iterative dpo of sessions (V1)"),
        (policies, "ecpo no rsft, with the stop"),
        (format_reward, "top 5, free beam"),
        (group_size, "sampling top-k 50, top-p .95"),
        (industrial, "both"),
        (rollout_speed, "G 32"),
        (selection, "best of 32"),
        (true_reward, "ecpo, stronger"),
    ],
)
def test_one_variant_returns_finite_numbers(module, variant, args):
    result = module.one(variant, 1, args)
    numbers = {k: v for k, v in result.items() if isinstance(v, float)}
    assert len(numbers) >= 3 and all(math.isfinite(v) for v in numbers.values())
    json.dumps(result)


def test_every_variant_is_a_valid_configuration():
    for module in (policies, format_reward, group_size, true_reward):
        for changes in module.VARIANTS.values():
            config = configure(changes or {}, 5)
            assert config.min_steps == config.max_steps == 5
            assert config.allowed_recall_loss == (changes or {}).get("allowed_recall_loss", 1.0)


def test_the_daily_weights_are_the_defaults():
    preference = configure(policies.VARIANTS["ecpo, daily weights"], 5).preference
    assert preference == configure({}, 5).preference and preference.policy_weight == 0.7
    assert preference.item_policy_weight == 0.0 and configure(policies.VARIANTS["ecpo"], 5).preference != preference


def test_format_curves_have_a_row_a_step_and_are_nothing_without_results():
    """The table is written before the first result is there."""
    assert format_reward.curves([]) == ""
    curve = [{"step": 0, "legality": 0.5}, {"step": 9, "legality": 1.0}]
    page = format_reward.curves([{"variant": "a & b", "curve": curve}])
    assert "| step | a & b |" in page and "| 9 | 1.000 |" in page and ">a &amp; b</text>" in page


def test_a_format_curve_ends_where_the_passes_over_a_small_day_do(args):
    args.steps = 1000
    result = format_reward.one("random 5", 1, args)
    last = result["curve"][-1]
    assert 1 < last["step"] < 100 and last["legality"] == result["legality"] <= result["legality_highest"]


def test_true_preference_is_the_simulators(prepared):
    users, items = np.array([3, 0]), np.array([7, 1, 40])
    found = truth(prepared / "truth", users, items)
    tastes, table = (pq.read_table(prepared / "truth" / f"{n}.parquet") for n in ("tastes", "items"))
    for i, user in enumerate(users):
        for j, item in enumerate(items):
            taste, vector = (
                np.array(t[c].to_pylist()[k]) for t, c, k in ((tastes, "taste", user), (table, "vector", item))
            )
            assert found[i, j] == pytest.approx(3.5 * taste @ vector + 0.4 * table["quality"].to_pylist()[item])


def test_recall_is_that_of_unseen_positives(args):
    evaluation = Evaluation(args)
    assert len(evaluation.rows) == 12
    for row, relevant in zip(evaluation.rows, evaluation.relevant):
        assert len(relevant) and not set(relevant) & set(evaluation.data.seen.row(row))
    everything = np.tile(np.arange(48), (12, 1))
    assert evaluation.recall(everything).tolist() == [1.0] * 12
    assert evaluation.recall(np.full((12, 5), -1)).tolist() == [0.0] * 12


def test_the_interval_is_students():
    mean, half = harness.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert math.isnan(harness.interval([1.0])[1])


def test_results_are_written_as_they_come(tmp_path):
    """After one of three processes there is a table of one row; the command leaves out where the results went."""
    benchmark = harness.Benchmark(
        module="benchmarks.alignment.none",
        title="T",
        variants=["a", "b"],
        one=lambda *_: {},
        columns=[harness.Column(key="x", title="X", digits=1)],
    )
    args = argparse.Namespace(prepared=Path("prepared/kr"), out=tmp_path / "out", device="cpu")
    result = {"variant": "b", "seed": 1, "x": 2.0, "seconds": 3.0, "commit": "abc"}
    page = harness._publish(benchmark, args, [result])
    assert "| b | 2.0 |" in page and "| a |" not in page and "seeds [1] and" in page and "- commit: abc\n" in page
    assert (args.out / "none_kr.md").read_text() == page
    assert json.loads((args.out / "none_kr.json").read_text())["results"] == [result]
    assert sorted(p.name for p in args.out.iterdir()) == ["none_kr.json", "none_kr.md"]
    told = ["--prepared", "p", "--out", "somewhere", "--variants", "G 32", "b", "--steps", "3"]
    assert harness._told(told, harness.ONLY_HOW) == ["--prepared", "p", "--steps", "3"]
    assert "--seeds 1 --variants b\n" in page


TINY = """
from benchmarks.alignment.harness import Benchmark, Column, main


def one(variant, seed, args):
    print("this is no answer")
    if variant == "bad":
        raise ValueError("a broken variant")
    return {"x": 10.0 * seed}


if __name__ == "__main__":
    columns = [Column(key="x", title="X", digits=0)]
    main(Benchmark(module="tiny_bench", title="T", variants=["good", "bad", "late"], one=one, columns=columns))
"""


def test_a_failed_variant_is_named_and_what_was_done_before_is_kept(tmp_path):
    """A real worker process: what it prints is no answer, its error ends the call, earlier results are on disk."""
    (tmp_path / "tiny_bench.py").write_text(TINY)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}"}
    command = [sys.executable, "-m", "tiny_bench", "--prepared", "p", "--seeds", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "bad, seed 2 failed" in done.stderr and "a broken variant" in done.stderr
    results = json.loads((tmp_path / "out" / "tiny_bench_p.json").read_text())["results"]
    assert [(r["variant"], r["seed"], r["x"]) for r in results] == [("good", 2, 20.0)]


def test_a_second_call_goes_on_behind_the_first(tmp_path):
    """What is there is not made again, unless it was made with other settings; a seed's own data is found."""
    (tmp_path / "tiny_bench.py").write_text(TINY.replace("10.0 * seed", "float(args.prepared.name == 'seed-3')"))
    (tmp_path / "p" / "seed-3").mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}"}

    def call(*words: str) -> tuple[list, str]:
        command = [sys.executable, "-m", "tiny_bench", "--prepared", str(tmp_path / "p"), "--variants", "good", *words]
        done = subprocess.run([*command, "--out", str(tmp_path)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "tiny_bench_p.json").read_text())["results"]
        return [(r["seed"], r["x"]) for r in results], done.stderr

    assert call("--seeds", "2")[0] == [(2, 0.0)]
    results, said = call("--seeds", "2", "3")
    assert results == [(2, 0.0), (3, 1.0)] and "seed 3:" in said and "seed 2:" not in said
    assert call("--seeds", "3", "--steps", "5")[0] == [(3, 1.0)]


def test_the_table_has_a_row_a_variant():
    results = [{"variant": "a", "x": 1.0}, {"variant": "a", "x": 3.0}, {"variant": "b"}]
    lines = harness.table(results, ["a", "b"], [harness.Column(key="x", title="X", digits=1)]).splitlines()
    assert lines[0] == "| variant | X |" and lines[2].startswith("| a | 2.0 ± 12.7 |") and lines[3] == "| b | – |"
