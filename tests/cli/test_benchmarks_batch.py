"""A batch of benchmarks: every ending is said, and what was written is packed also when the batch is cut."""

from __future__ import annotations

import argparse
import runpy
import shlex
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.batch import Batch, Run, plan
from benchmarks.machine import REPOSITORY

PARSE = argparse.ArgumentParser.parse_args
COMMITTED = sorted((REPOSITORY / "benchmarks").glob("*.toml"))


def _packed(out: Path) -> dict[str, str]:
    with tarfile.open(out / "results.tar") as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers()}


def test_every_ending_is_told_and_its_output_kept(tmp_path):
    runs = [
        Run(name="good", group="a", command="echo well; echo $CUDA_VISIBLE_DEVICES", alone=True),
        Run(name="bad", group="a", command="echo oops >&2; exit 3"),
        Run(name="slow", group="a", command="echo begun; sleep 60 & sleep 60", seconds=1.0),
        Run(name="poor", group="a", command="echo never", needs=("no/such/file",)),
    ]
    ended = Batch(tmp_path / "out", 60, gpus=2, side_by_side=3)(runs)
    assert ended["good"].startswith("done") and ended["bad"].startswith("failed with status 3")
    assert ended["slow"].startswith("cut") and "no/such/file" in ended["poor"]
    packed = _packed(tmp_path / "out")
    assert packed["logs/good.log"] == "well\n0\n" and packed["logs/bad.log"] == "oops\n"
    assert packed["logs/slow.log"] == "begun\n" and "logs/poor.log" not in packed


def test_timed_runs_follow_each_other_and_others_do_not(tmp_path):
    def stamp(name: str, alone: bool) -> Run:
        command = f"date +%s%N > {tmp_path}/{name}.begin; sleep .4; date +%s%N > {tmp_path}/{name}.end"
        return Run(name=name, group="g", command=command, alone=alone)

    Batch(tmp_path / "out", 60, gpus=1, side_by_side=2)([stamp(n, n in "ab") for n in "abcd"])
    at = {p.name: int(p.read_text()) for p in tmp_path.glob("?.*")}
    assert at["a.end"] <= at["b.begin"] or at["b.end"] <= at["a.begin"]
    assert at["c.begin"] < at["d.end"] and at["d.begin"] < at["c.end"]


def test_a_batch_ends_in_time_with_what_is_there(tmp_path):
    runs = [Run(name=f"r{i}", group="g", command=f"echo {i}; sleep 60", alone=True) for i in range(3)]
    begun = time.monotonic()
    ended = Batch(tmp_path, 12, gpus=1, side_by_side=1)([*runs[:1], Run(name="q", group="g", command="echo quick")])
    assert time.monotonic() - begun < 20  # 12 given, of which the last ten are for packing
    assert ended["r0"].startswith(("cut", "left out")) and "results.tar" in {p.name for p in tmp_path.iterdir()}


def test_results_are_packed_under_their_own_names(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.batch.REPOSITORY", tmp_path)
    (tmp_path / "found").mkdir()
    run = Run(name="w", group="g", command="echo 1 > found/a.json; echo 2 > found/b.txt", results=("found/*.json",))
    Batch(tmp_path / "out", 60, gpus=1, side_by_side=1)([run])
    assert set(_packed(tmp_path / "out")) == {"found/a.json", "logs/w.log"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("run = 1", "plan"),
        ("[[run]]\nname = 'a'\ngroup = 'g'\ncommand = 'x'\ncolour = 'red'", "colour"),
        ("[[run]]\nname = 'a'\ngroup = 'g'\ncommand = 'x'\n" * 2, "twice"),
        ("[[run", "plan"),
    ],
)
def test_a_wrong_plan_is_refused_in_words(tmp_path, text, said):
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        plan(file, [])


@pytest.mark.parametrize("file", COMMITTED, ids=lambda p: p.name)
def test_committed_plans_name_modules_that_exist(file):
    runs = plan(file, [])
    assert runs and plan(file, [runs[0].name]) == runs[:1]
    for run in runs:
        words = run.command.split()
        modules = [words[i + 1] for i, word in enumerate(words) if word == "-m"]
        assert modules, run.name
        for module in modules:
            path = REPOSITORY / Path(*module.split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{run.name}: {module}"
    with pytest.raises(ValueError, match="no run or group"):
        plan(file, ["no such"])


class Parsed(BaseException):
    """Raised where a command has read its arguments, instead of what it would do then."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("run", [run for file in COMMITTED for run in plan(file, [])], ids=lambda run: run.name)
def test_committed_commands_are_understood(run, monkeypatch, capsys):
    """The module's own parser takes the command's words: options, choices, types; nothing runs behind it."""

    def parse_only(parser: argparse.ArgumentParser, words: list[str] | None = None, namespace=None) -> None:
        PARSE(parser, words, namespace)
        raise Parsed

    python, m, module, *words = shlex.split(run.command)
    assert [python, m] == ["python", "-m"], f"{run.name}: write its command as python -m MODULE ..."
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    try:
        runpy.run_module(module, run_name="__main__")
    except Parsed:
        return
    except SystemExit:
        pytest.fail(f"{run.name}: {capsys.readouterr().err}")
    pytest.fail(f"{run.name}: {module} reads no arguments")
