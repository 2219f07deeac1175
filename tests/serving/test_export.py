"""The exported request: equal to the eager ranking, gated, loaded where it fits, eager where it does not.

.venv/ml/bin/python -m pytest tests/serving/test_export.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import zipfile
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch

from models.onerec.program import INPUTS, NOTHING, ServingProgram, input_shapes
from serving.export import compiling, loading, package
from serving.export.graphs import Graphs
from serving.export.package import Signature, export_release
from serving.export.parity import answers, compare, reference
from serving.export.program import Program
from tests.models.conftest import small_model

LENGTHS = [[5, 6, 7], [0, 0, 0], [3, 2, 1], [5, 0, 7], [1, 6, 2]]


def random_users(model, seed: int = 0) -> dict[str, torch.Tensor]:
    """One user a row of LENGTHS; what stands in the padding is arbitrary and must not matter."""
    c, generator = model.config, torch.Generator().manual_seed(seed)
    limits = [c.items + 1, c.author_buckets, c.tag_buckets, 32, 14, 24, 256]
    users = {}
    for name, shape in input_shapes(c).items():
        if len(shape) == 2:
            rows = [torch.randint(n, (len(LENGTHS), shape[0]), generator=generator) for n in limits]
            users[name] = torch.stack(rows, -1).int()
    users["static"] = torch.randint(c.static_buckets, (len(LENGTHS), c.static_features), generator=generator).int()
    return users | {"lengths": torch.tensor(LENGTHS, dtype=torch.int32)}


def eager(model, tokenizer, width: int) -> ServingProgram:
    return ServingProgram(model, tokenizer.trie, torch.from_numpy(tokenizer.catalogue.item_ids), width)


def run(program, users, beam) -> tuple[torch.Tensor, ...]:
    beam_B = torch.as_tensor(beam, dtype=torch.int32).expand(len(LENGTHS))
    with torch.no_grad():
        return program(*((users | {"beam": beam_B})[name] for name in INPUTS))


LAZY = {"architecture": "lazy_decoder", "encoder_layers": 0, "item_head": False}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item_head": False},
        LAZY,
        {"history_bag": True},
        {"event_head": True, "encoder_layers": 2},
        {"history": "hashed", "decoder_layers": 3},
    ],
)
@pytest.mark.parametrize(("width", "beam"), [(16, 16), (16, 5), (16, 1), (80, 60)])
def test_the_program_is_the_eager_ranking_at_any_beam_under_its_width(changes, width, beam) -> None:
    model, tokenizer = small_model(items=60, codebook_size=6, **changes)
    users = random_users(model)
    items, scores, sids = run(eager(model, tokenizer, width), users, beam)
    want_ids, want_scores = reference(model, tokenizer, users, beam)
    n = want_ids.shape[1]
    np.testing.assert_array_equal(items[:, :n].numpy(), want_ids)
    np.testing.assert_allclose(scores[:, :n].numpy(), want_scores, atol=1e-5)
    assert (items[:, n:] == NOTHING).all() and (scores[:, n:] == -torch.inf).all() and (sids[:, n:] == NOTHING).all()
    known = items >= 0
    np.testing.assert_array_equal(sids[known].numpy(), tokenizer.sid_NL[items[known].numpy() // 10])


def test_a_model_with_an_event_head_is_traced_whole_and_answers_as_the_eager_ranking() -> None:
    model, tokenizer = small_model(items=60, codebook_size=6, event_head=True, encoder_layers=2)
    users, program = random_users(model), eager(model, tokenizer, 16)
    example = users | {"beam": torch.full((len(LENGTHS),), 16, dtype=torch.int32)}
    shapes = {name: {0: torch.export.Dim("batch", min=1, max=8)} for name in INPUTS}
    with torch.no_grad():
        traced = torch.export.export(program, tuple(example[name] for name in INPUTS), dynamic_shapes=shapes).module()
    for size in (5, 2):
        some = {name: t[:size] for name, t in random_users(model, seed=3).items()}
        beam = torch.full((size,), 16, dtype=torch.int32)
        with torch.no_grad():
            items, scores, _ = traced(*((some | {"beam": beam})[name] for name in INPUTS))
        want_ids, want_scores = reference(model, tokenizer, some, 16)
        np.testing.assert_array_equal(items.numpy(), want_ids)
        np.testing.assert_allclose(scores.numpy(), want_scores, atol=1e-5)


def test_each_request_of_a_batch_has_its_own_beam() -> None:
    model, tokenizer = small_model(items=60, codebook_size=6)
    users, program = random_users(model), eager(model, tokenizer, 16)
    mixed = run(program, users, [1, 4, 16, 9, 2])
    for row, beam in enumerate([1, 4, 16, 9, 2]):
        alone = run(program, users, beam)
        assert torch.equal(mixed[0][row], alone[0][row]) and torch.equal(mixed[2][row], alone[2][row])
        assert int((mixed[0][row] >= 0).sum()) == beam


def test_lists_are_not_exported() -> None:
    model, tokenizer = small_model(session_items=2)
    with pytest.raises(ValueError, match="lists of 2 items"):
        eager(model, tokenizer, 4)


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


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A model directory with a compiled package: the one compilation of these tests."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("release")
    model, tokenizer = small_model(items=60, codebook_size=6, encoder_layers=1, decoder_layers=1)
    (folder / "serving").mkdir()
    report = export_release(
        model=model, tokenizer=tokenizer, users=random_users(model), out=folder / "serving", beam=16,
        max_batch=8, progress=lambda _: None,
    )  # fmt: skip
    return folder, model, tokenizer, report


def program_of(release) -> Program:
    """As `Program.load` builds it, without the files of a tokenizer."""
    folder, model, tokenizer, _ = release
    written = Signature.load(folder / "serving" / "signature.json")
    found = written.packages[0]
    return Program(model, tokenizer, None, "cpu", written, folder / "serving" / found.file, found.beam)


def test_the_package_passes_the_gate_and_says_what_it_was_built_by(release) -> None:
    folder, _, _, report = release
    assert report["cpu"]["passed"] and report["cpu"]["top1"] == report["cpu"]["overlap"] == 1
    verdict = json.loads((folder / "serving" / "parity.json").read_text())["cpu"]
    assert verdict.items() <= report["cpu"].items() and not [
        name for name in verdict if name.endswith(("ms", "seconds"))
    ]
    written = Signature.load(folder / "serving" / "signature.json")
    assert [(p.device, p.beam, p.torch) for p in written.packages] == [("cpu", 16, torch.__version__)]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_package_takes_any_batch_and_equals_the_eager_program(release, size) -> None:
    _, model, tokenizer, _ = release
    users = {name: t[:size] for name, t in random_users(model, seed=3).items()}
    program = program_of(release)
    program.warm_up()
    items, scores, sids = program(users, beam=torch.tensor([16, 3, 9, 1, 2])[:size], top_k=12)
    whole = run(eager(model, tokenizer, 16), random_users(model, seed=3), [16, 3, 9, 1, 2])
    want_items, want_scores, want_sids = (x[:size, :12] for x in whole)
    assert torch.equal(items, want_items) and torch.equal(sids, want_sids)
    torch.testing.assert_close(scores, want_scores, atol=1e-5, rtol=1e-5)
    assert program.describe()["kind"] == "package"


def test_a_wider_beam_than_the_package_is_answered_eagerly(release) -> None:
    _, model, tokenizer, _ = release
    items, _, _ = program_of(release)(random_users(model), beam=60, top_k=70)
    want, _ = reference(model, tokenizer, random_users(model), 60)
    np.testing.assert_array_equal(items[:, :60].numpy(), want)
    assert items.shape == (5, 70) and (items[:, 60:] == NOTHING).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"static": torch.zeros(5, 2, dtype=torch.int32)}, "static is"),
        ({"short": torch.zeros(5, 5, 7)}, "short is torch.float32"),
        ({"lengths": None}, "missing"),
    ],
)
def test_wrong_tensors_are_refused_by_name(release, change, match) -> None:
    users = {k: v for k, v in (random_users(release[1]) | change).items() if v is not None}
    with pytest.raises(ValueError, match=match):
        program_of(release)(users, beam=4, top_k=4)


@pytest.mark.parametrize(("beam", "top_k"), [(0, 4), (61, 4), (4, 0), (torch.tensor([1, 2, 0, 4, 5]), 4)])
def test_beams_and_k_outside_the_signature_are_refused(release, beam, top_k) -> None:
    with pytest.raises(ValueError, match=r"(beam|top_k) is"):
        program_of(release)(random_users(release[1]), beam=beam, top_k=top_k)


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


def test_a_package_that_ends_its_process_is_told_and_not_kept(release, tmp_path, monkeypatch) -> None:
    """The compiled library is another one, which does as std::regex does where the compiler is of another system."""
    folder, model, tokenizer, _ = release
    good = folder / "serving" / "cpu.pt2"
    assert loading.why_not(good) == ""
    (tmp_path / "crash.cpp").write_text(
        "#include <csignal>\n__attribute__((constructor)) static void ends() { raise(SIGSEGV); }\n"
    )
    library = tmp_path / "crash.so"
    command = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-o", str(library), str(tmp_path / "crash.cpp")]
    subprocess.run(command, check=True)

    def crashing(program, users, path, max_batch) -> None:
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
            for entry in old.infolist():
                is_library = entry.filename.endswith(".so")
                new.writestr(entry, library.read_bytes() if is_library else old.read(entry))

    said: list[str] = []
    monkeypatch.setattr(package, "compile_package", crashing)
    users, out = random_users(model), tmp_path / "out"
    out.mkdir()
    report = export_release(model=model, tokenizer=tokenizer, users=users, out=out, beam=16, progress=said.append)
    assert "SIGSEGV" in report["cpu"]["reason"] and "CXX" in report["cpu"]["reason"] and not report["cpu"]["passed"]
    assert sorted(p.name for p in out.iterdir()) == ["parity.json", "signature.json"]
    assert json.loads((out / "parity.json").read_text())["cpu"]["passed"] and "served eagerly" in said[-1]  # uncompiled
    written = Signature.load(out / "signature.json")
    assert written.packages == [] and written.precisions == {"cpu": "float32"}


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


@pytest.mark.parametrize("change", [None, "torch", "target", "no package", "no folder"])
def test_where_the_package_does_not_fit_the_eager_program_answers_and_says_why(
    world, release, tmp_path, monkeypatch, change
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
