"""The benchmark of a day's release on a GPU, on a CPU: a release is published anew, served, and its answers judged."""

from __future__ import annotations

import json

import pytest

import benchmarks.serving.gpu_release as program
from datasets.partitions import PART, partition_path
from serving.export.package import FOLDER, SIGNATURE, signature
from tests.feature_repo.conftest import DAYS

GATE = {"users": 3, "top_k": 10, "top1": 1.0, "overlap": 1.0, "passed": False, "precision": "float32"}


def exported(*, model, tokenizer, users, out, devices, **_):
    """An export whose package does not pass: what the compiler makes is judged in test_export_gate.py."""
    signature(model.config, len(tokenizer.catalogue)).save(out / SIGNATURE)
    return {devices[0]: GATE | {"users": len(users["static"]), "reason": "the gate"}}


def test_every_user_is_asked_for_and_a_wrong_answer_shows(world, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(program, "export_release", exported)
    monkeypatch.setattr(program, "ALONE", 3)
    users = partition_path(world.features / "training", DAYS[-1]) / PART
    arguments = ["--release", str(world.release), "--users", str(users), "--out", str(tmp_path), "--device", "cpu"]
    arguments += ["--beam", "16", "--max-batch", "4", "--sizes", "1", "3"]
    assert program.main(arguments) == 0
    page = (tmp_path / "gpu_release.md").read_text()
    assert "no package (the gate" in page and "| the package |" not in page
    for size in (1, 3):
        assert f"| eager | {size} | 1.0000 | 1.0000 |" in page
    assert "'kind': 'eager'" in capsys.readouterr().out

    true = program.reference
    monkeypatch.setattr(program, "reference", lambda *args: (true(*args)[0][::-1], true(*args)[1]))
    assert program.main(arguments) == 1


def test_a_release_is_published_with_the_export_and_nothing_else_changed(world, tmp_path) -> None:
    manifest, made = program.verify(world.release), tmp_path / FOLDER
    made.mkdir()
    (made / SIGNATURE).write_text("{}")
    store = program.DirectoryStore(tmp_path / "store")
    folder = program.published(store, world.release, manifest, made)
    files = {entry.path: entry.sha256 for entry in program.verify(folder).files}
    assert json.loads((folder / FOLDER / SIGNATURE).read_text()) == {} and files.pop(f"{FOLDER}/{SIGNATURE}")
    assert files == {entry.path: entry.sha256 for entry in manifest.files}
    assert program.published(store, world.release, manifest, None).name == world.release.name


def test_what_is_no_release_and_who_are_no_users_is_named(world, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        program.main(["--release", str(tmp_path), "--users", __file__, "--out", str(tmp_path)])
    assert "manifest" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main(["--release", str(world.release), "--users", str(tmp_path / "x"), "--out", str(tmp_path)])
    assert f"--users {tmp_path}/x is no file; give" in capsys.readouterr().err
