"""What a server loads of a release: the package where it fits, else the eager program, and its graphs on CUDA.

.venv/ml/bin/python -m pytest tests/serving/test_export_program.py
"""

from __future__ import annotations

import dataclasses
from shutil import copytree

import numpy as np
import pytest
import torch

from models.onerec.program import NOTHING
from serving.export import package
from serving.export.graphs import Graphs
from serving.export.parity import reference
from serving.export.program import Program
from tests.models.conftest import small_model
from tests.serving.test_export import random_users


@pytest.mark.parametrize("passed", [{}, {"cpu": "bfloat16"}])
def test_the_eager_program_computes_in_what_passed_the_gate_and_else_in_float32(passed) -> None:
    model, tokenizer = small_model(items=60, codebook_size=6)
    limits = package.signature(model.config, 60, precisions=passed)
    program = Program(model, tokenizer, None, "cpu", limits)
    wanted = torch.bfloat16 if passed else torch.float32
    assert {run.model.bos_D.dtype for run in program._widths.values()} == {wanted}
    assert model.bos_D.dtype == torch.float32
    items, _, _ = program(random_users(model), beam=4, top_k=4)
    assert items.shape == (5, 4)


@pytest.mark.parametrize("change", [None, "torch", "target", "no package", "no folder"])
def test_where_the_package_does_not_fit_the_eager_program_answers_and_says_why(
    world, tmp_path, monkeypatch, change
) -> None:
    """`world` is a published release; its model and tokenizer are loaded for real, the package is a stand-in."""
    folder = tmp_path / "release"
    copytree(world.release, folder)
    eager_only = Program.load(folder)
    assert eager_only.kind == "eager" and "no exported program" in eager_only.reason
    found = package.Package(
        file="cpu.pt2", device="cpu", beam=128, torch=torch.__version__, target=package.target_of("cpu")
    )
    if change in ("torch", "target"):
        found = dataclasses.replace(found, **{change: "another"})
    monkeypatch.setattr("serving.export.program.load_package", lambda path: eager_only._widths[128])
    limits = package.signature(eager_only.model.config, 200, [] if change == "no package" else [found])
    if change != "no folder":
        (folder / "serving").mkdir()
        limits.save(folder / "serving" / "signature.json")
    program = Program.load(folder)
    assert program.kind == ("package" if change is None else "eager") and bool(program.reason) == (change is not None)


def test_another_models_signature_is_refused(world, tmp_path) -> None:
    folder = tmp_path / "release"
    copytree(world.release, folder)
    limits = package.signature(Program.load(folder).model.config, 200)
    (folder / "serving").mkdir()
    dataclasses.replace(limits, max_beam=7).save(folder / "serving" / "signature.json")
    with pytest.raises(ValueError, match="another model or catalogue"):
        Program.load(folder)


def test_a_session_wise_model_is_served_eagerly() -> None:
    """By `rank_items`, each request with its own beam."""
    model, tokenizer = small_model(items=60, codebook_size=6, session_items=2)
    users, limits = random_users(model), package.signature(model.config, 60)
    program = Program(model, tokenizer, None, "cpu", limits)
    program.warm_up()
    items, scores, sids = program(users, beam=torch.tensor([9, 9, 3, 9, 9]), top_k=12)
    for rows, beam in (([0, 1, 3, 4], 9), ([2], 3)):
        want_ids, want_scores = reference(model, tokenizer, users, beam)
        np.testing.assert_array_equal(items[rows, :beam].numpy(), want_ids[rows])
        np.testing.assert_allclose(scores[rows, :beam].numpy(), want_scores[rows], atol=1e-5)
        assert (items[rows, beam:] == NOTHING).all() and (scores[rows, beam:] == -torch.inf).all()
    known = items >= 0
    np.testing.assert_array_equal(sids[known].numpy(), tokenizer.sid_NL[items[known].numpy() // 10])


class FakeRecorder:
    """Records like CUDA does: fixed memory, replayed."""

    def record(self, function, inputs):
        outputs = tuple(x.clone() for x in function(*inputs))

        def replay() -> None:
            for to, x in zip(outputs, function(*inputs)):
                to.copy_(x)

        return replay, outputs


def test_graphs_are_captured_once_a_shape_and_never_after_the_freeze() -> None:
    graphs = Graphs(lambda x, y: (x + y,), FakeRecorder())
    for size in (1, 2, 4):
        graphs.capture(size, [torch.zeros(size), torch.zeros(size)])
    graphs.capture(2, [torch.zeros(2), torch.zeros(2)])
    graphs.freeze()
    assert graphs.captures == 3
    first = graphs(2, [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])])[0]
    assert first.tolist() == [11, 22]
    again = graphs(2, [torch.tensor([5.0, 6.0]), torch.ones(2)])[0]
    assert again.tolist() == [6, 7] and again.data_ptr() == first.data_ptr()
    with pytest.raises(RuntimeError, match="frozen"):
        graphs(3, [torch.zeros(3), torch.zeros(3)])
    assert graphs.captures == 3
