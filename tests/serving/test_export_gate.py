"""The gate of an export: what it compares, what it lets be compiled, and what is left where it does not.

.venv/ml/bin/python -m pytest tests/serving/test_export_gate.py
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.export import compiling, package
from serving.export.package import Signature, export_release
from serving.export.parity import answers, compare, reference
from tests.models.conftest import small_model
from tests.serving.test_export import eager, random_users


def ranked(rows: list[list[int]], scores: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(rows), np.array(scores)


def test_ties_are_right_in_either_order_and_other_differences_are_not() -> None:
    wanted = ranked([[1, 2, 3, 4]], [[-1.0, -1.0 - 1e-7, -2.0, -2.0 - 1e-7]])
    swapped = compare(wanted, ranked([[2, 1, 4, 3]], [[0.0] * 4]), top_k=3)
    assert swapped["passed"] and swapped["top1"] == 1 and swapped["overlap"] == 1
    assert swapped["top1_without_ties"] == 0 and swapped["overlap_without_ties"] == pytest.approx(2 / 3)
    wrong_first = compare(wanted, ranked([[3, 1, 2, 4]], [[0.0] * 4]), top_k=3)
    assert not wrong_first["passed"] and wrong_first["top1"] == 0 and wrong_first["overlap"] == 1
    twice = compare(wanted, ranked([[1, 1, 1, 1]], [[0.0] * 4]), top_k=2)
    assert not twice["passed"] and twice["overlap"] == 0.5
    unknown = compare(wanted, ranked([[1, 9, 8, 7]], [[0.0] * 4]), top_k=2)
    assert not unknown["passed"] and unknown["overlap"] == 0.5


def test_a_user_without_any_legal_item_must_get_none() -> None:
    nothing = ranked([[-1, -1]], [[-np.inf, -np.inf]])
    assert compare(nothing, nothing)["passed"]
    assert not compare(nothing, ranked([[5, -1]], [[-1.0, -np.inf]]))["passed"]


def test_a_program_that_fails_the_gate_is_not_exported(tmp_path, monkeypatch) -> None:
    model, tokenizer = small_model(items=60, codebook_size=6)
    users = random_users(model)

    def compiled(program, users, path, max_batch) -> None:
        path.write_bytes(b"")

    def reversed_order(*inputs):
        items, scores, sids = eager(model, tokenizer, 16)(*inputs)
        return items.flip(1), scores.flip(1), sids.flip(1)

    monkeypatch.setattr(package, "compile_package", compiled)
    monkeypatch.setattr(package, "why_not", lambda path: "")
    monkeypatch.setattr(package, "load_package", lambda path: reversed_order)
    report = export_release(
        model=model, tokenizer=tokenizer, users=users, out=tmp_path, beam=16, progress=lambda _: None
    )
    assert not report["cpu"]["passed"] and not (tmp_path / "cpu.pt2").exists()
    assert Signature.load(tmp_path / "signature.json").packages == []


def test_the_first_precision_that_passes_is_compiled_and_no_other(tmp_path, monkeypatch) -> None:
    model, tokenizer = small_model(items=60, codebook_size=6)
    compiled, said = [], []

    def compile_package(program, users, path, max_batch) -> None:
        compiled.append(program)
        path.write_bytes(b"package")

    def compare(wanted, got):
        """As if bfloat16 failed: which program answers, its scores' steps tell."""
        coarse = np.abs(got[1] - wanted[1])[np.isfinite(wanted[1])].max() > 1e-4
        return {"users": 5, "top_k": 10, "top1": 1.0 - coarse, "overlap": 1.0, "passed": not coarse}

    monkeypatch.setattr(package, "PRECISIONS", {"cpu": ("bfloat16", "float32")})
    monkeypatch.setattr(package, "compile_package", compile_package)
    monkeypatch.setattr(package, "compare", compare)
    monkeypatch.setattr(package, "why_not", lambda path: "")
    monkeypatch.setattr(package, "load_package", lambda path: compiled[-1])
    users = random_users(model)
    report = export_release(model=model, tokenizer=tokenizer, users=users, out=tmp_path, beam=16, progress=said.append)
    assert [p.model.bos_D.dtype for p in compiled] == [torch.float32] and "bfloat16" in said[0]
    assert report["cpu"]["passed"] and report["cpu"]["precision"] == "float32"
    written = Signature.load(tmp_path / "signature.json")
    assert len(written.packages) == 1 and written.precisions == {"cpu": "float32"}
    dataclasses.replace(written, precisions={"cpu": "int8"}).save(tmp_path / "signature.json")
    with pytest.raises(ValueError, match="precision int8"):
        Signature.load(tmp_path / "signature.json")
    monkeypatch.setattr(package, "PRECISIONS", {"cpu": ("bfloat16",)})
    report = export_release(model=model, tokenizer=tokenizer, users=users, out=tmp_path, beam=16, progress=said.append)
    assert len(compiled) == 1 and not report["cpu"]["passed"] and "served eagerly" in said[-1]
    written = Signature.load(tmp_path / "signature.json")
    assert written.packages == [] and written.precisions == {}


def test_some_users_of_the_gate_come_alone() -> None:
    """A compiler takes a batch for two users or more; were the answers to one wrong, the gate must see it."""
    model, tokenizer = small_model(items=60, codebook_size=6)
    users, program = random_users(model), eager(model, tokenizer, 16)
    sizes: list[int] = []

    def wrong_alone(*inputs):
        sizes.append(len(inputs[0]))
        items, scores, sids = program(*inputs)
        return (items.flip(1), scores.flip(1), sids.flip(1)) if len(inputs[0]) == 1 else (items, scores, sids)

    wanted = reference(model, tokenizer, users, 16)
    assert compare(wanted, answers(program, users, 16))["passed"]
    assert not compare(wanted, answers(wrong_alone, users, 16))["passed"] and sizes == [3, 1, 1]


def test_how_users_are_cut_into_batches_changes_no_answer() -> None:
    model, tokenizer = small_model(items=60, codebook_size=6)
    program, users = eager(model, tokenizer, 16), random_users(model)
    np.testing.assert_array_equal(answers(program, users, 16, size=2)[0], answers(program, users, 16, size=5)[0])


def test_without_a_compiler_the_release_is_served_eagerly(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    model, tokenizer = small_model(items=60, codebook_size=6)
    told: list[str] = []
    report = export_release(
        model=model, tokenizer=tokenizer, users=random_users(model), out=tmp_path, beam=16, progress=told.append
    )
    assert not report["cpu"]["passed"] and "install g++" in report["cpu"]["reason"] and "install g++" in told[-1]
    assert Signature.load(tmp_path / "signature.json").packages == [] and not (tmp_path / "cpu.pt2").exists()


@pytest.mark.parametrize("mode", [None, 0o700, 0o777])
def test_programs_are_compiled_in_one_folder_of_our_own(tmp_path, monkeypatch, mode) -> None:
    """Its path stands in what is compiled; one that others can write is not used."""
    workshop = tmp_path / "workshop"
    monkeypatch.setattr(compiling, "WORKSHOP", workshop)
    monkeypatch.setenv(compiling.CACHE_DIR, "before")
    if mode is not None:
        (workshop / "cache").mkdir(parents=True)
        (workshop / "cache" / "left").touch()
        workshop.chmod(mode)
    with compiling._workshop():
        used = Path(os.environ[compiling.CACHE_DIR])
        assert not used.exists()
        used.mkdir()
    assert (used == workshop / "cache") == (mode != 0o777) and not used.exists()
    assert os.environ[compiling.CACHE_DIR] == "before"
