"""ONEREC_STORE reaches every command and process that reads releases, and nothing opens a directory behind its back."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

import pytest

import cli.local
import serving.run
from cli.main import main
from kfp_components.digest import REPOSITORY
from releases.channels import promote
from releases.stores import open_store
from serving import run as serving_run
from tests.releases.conftest import publish_small, write_files

OPENERS = {"releases/object_store.py", "releases/stores.py"}


def test_only_the_room_of_releases_opens_a_directory() -> None:
    found = set()
    for room in ("cli", "dags", "kfp_components", "releases", "serving"):
        for file in (REPOSITORY / room).rglob("*.py"):
            names = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
            found |= {str(file.relative_to(REPOSITORY))} if "DirectoryStore" in names else set()
    assert found <= OPENERS


@pytest.mark.parametrize(
    "command", [["recommend", "42"], ["eval", "production", "2022-05-05"], ["release", "list"]], ids=lambda c: c[0]
)
def test_a_command_asks_the_store_that_is_set(command, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ONEREC_STORE", "ftp://somewhere")
    (tmp_path / "logs" / "lake").mkdir(parents=True)  # as a source looks whose releases are all elsewhere
    assert main([*command, "--root", str(tmp_path)]) == 1
    assert "ONEREC_STORE is 'ftp://somewhere'" in capsys.readouterr().err


def test_the_servers_ask_the_store_that_is_set(tmp_path: Path, monkeypatch, capsys) -> None:
    asked: list[tuple[Path, str]] = []

    def opened(directory: Path, *, source: str):
        asked.append((directory, source))
        return open_store(directory, source=source)

    for module in (serving.run, cli.local):
        monkeypatch.setattr(module, "open_store", opened)
    folder = tmp_path / "logs" / "store"
    folder.mkdir(parents=True)
    options = [f"--{name}={tmp_path}" for name in ("features", "feature-store", "log")]
    for more in ([], ["--source=shop"]):
        assert serving_run.main([f"--store={folder}", *options, *more]) == 1
    assert "names no release; make one: onerec daily" in capsys.readouterr().err
    assert cli.local.production(tmp_path) is None
    assert asked == [(folder, "logs"), (folder, "shop"), (folder, "logs")]


def test_production_is_the_source_that_moved_last(tmp_path: Path) -> None:
    made = {}
    for number, (source, at) in enumerate((("a", "2026-01-02"), ("b", "2026-01-03"), ("c", "2026-01-01"), ("d", ""))):
        store = open_store(tmp_path / source / "store", source=source)
        made[source] = publish_small(store, write_files(tmp_path / "f" / source, number))
        if at:
            promote(store, made[source])
            pointer = tmp_path / source / "store" / "channels" / "production.json"
            channel = json.loads(pointer.read_text())
            channel["history"][-1]["at"] = f"{at}T00:00:00+00:00"
            pointer.write_text(json.dumps(channel))
    found = cli.local.production(tmp_path)
    assert found is not None and (found[0].source, found[1]) == ("b", made["b"])


def test_a_root_without_sources_says_what_to_give(tmp_path: Path) -> None:
    from cli.options import workspace

    with pytest.raises(ValueError, match="with ONEREC_STORE: --source"):
        workspace(argparse.Namespace(root=str(tmp_path), source=""))
