"""Arguments, errors and help of the `onerec` command."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from cli.backfill import between
from cli.main import main, parser
from cli.options import source_of
from kfp_components.digest import REPOSITORY


def all_parsers(top: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [p for a in top._actions if isinstance(a, argparse._SubParsersAction) for p in a.choices.values()]
    return [top, *(q for p in below for q in all_parsers(p))]


def test_every_help_ends_with_an_example_that_parses() -> None:
    for one in all_parsers(parser()):
        assert one.epilog and one.epilog.startswith("example: onerec "), one.prog
        import shlex

        parser().parse_args(shlex.split(one.epilog.removeprefix("example: onerec ")))


def test_the_commands_are_those_of_the_design() -> None:
    found = {p.prog.removeprefix("onerec").strip() for p in all_parsers(parser())} - {""}
    assert {"daily", "backfill", "recommend", "report", "simulate", "release", "eval"} <= found
    assert {f"release {a}" for a in ("list", "show", "diff", "promote", "rollback")} <= found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["daily", "--date", "5.5.2022"], "'5.5.2022' is not a day; write it as YYYY-MM-DD"),
        (["daily", "--from", "bake"], "invalid choice: 'bake'"),
        (["report", "yesterday"], "'yesterday' is not a day"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_arguments_are_status_2(arguments, said, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["daily", "--data", "/nowhere/logs"], "source /nowhere/logs is not a folder"),
        (["daily", "--data", "/nowhere/logs", "--date", "2022-05-05"], "/nowhere/logs is no folder; give --data"),
        (["backfill", "--from", "2022-05-05"], "give --from and --to, or --undo NAME"),
        (["backfill", "--from", "2022-05-05", "--to", "2022-05-03"], "is -1 days; give 1 to 366, oldest first"),
        (["release", "list"], "holds no releases; run `onerec daily` first"),
        (["recommend", "42"], "holds no releases; run `onerec daily` first"),
        (["report", "2022-05-05"], "holds no releases; run `onerec daily` first"),
    ],
)
def test_errors_a_user_can_mend_are_one_line_and_status_1(arguments, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ONEREC_ROOT", str(tmp_path / "var"))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_two_sources_are_never_guessed_between(tmp_path, capsys) -> None:
    for source in ("logs", "simulated"):
        (tmp_path / source / "store").mkdir(parents=True)
    assert main(["release", "list", "--root", str(tmp_path)]) == 1
    assert "several sources (logs, simulated); say which: --source logs" in capsys.readouterr().err
    assert main(["release", "list", "--root", str(tmp_path), "--source", "logs"]) == 0


def test_sources_are_named_after_their_folder() -> None:
    assert source_of(None) == "simulated"
    assert source_of(Path("/data/KuaiRand Pure")) == "kuairand-pure"
    assert source_of(Path("/data/KuaiRand"), "mine") == "mine"


def test_backfill_plans_days_in_order(capsys, tmp_path) -> None:
    assert between("2022-02-27", "2022-03-01") == ["2022-02-27", "2022-02-28", "2022-03-01"]
    assert main(["backfill", "--from", "2022-02-27", "--to", "2022-03-01", "--root", str(tmp_path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 day(s): 2022-02-27, 2022-02-28, 2022-03-01; pipelines: features, tokenizer, training")
    assert "rebuilds 3 day(s); time unknown" in said and list(tmp_path.iterdir()) == []


def test_backfill_says_with_the_plan_that_days_before_it_are_missing(capsys, tmp_path) -> None:
    made = tmp_path / "simulated" / "days" / "2022-05-01" / "pathways" / "_outcome.json"
    made.parent.mkdir(parents=True)
    made.touch()
    assert main(["backfill", "--from", "2022-05-04", "--to", "2022-05-05", "--root", str(tmp_path), "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "2022-05-04  rebuild" in said.out
    assert "error: 2022-05-04 starts from the features of 2022-05-03, which are not here" in said.err
    assert "onerec backfill --from 2022-05-02 --to 2022-05-04" in said.err


def test_a_release_that_is_not_there_is_only_said_not_to_be_there(capsys, tmp_path) -> None:
    (tmp_path / "logs" / "store").mkdir(parents=True)
    assert main(["release", "promote", "2022-05-05-0123456789ab", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is no release 2022-05-05-0123456789ab") and said.count("\n") == 1


def test_help_starts_fast_because_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "feast", "kfp", "great_expectations", "duckdb", "pyarrow")
    code = f"import sys, cli.main; cli.main.parser(); print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr
