"""The exported request: equal to the eager ranking, as a program and as a package of a release.

.venv/ml/bin/python -m pytest tests/serving/test_export.py
"""

from __future__ import annotations

import json
import os
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from models.onerec.program import INPUTS, NOTHING, ServingProgram, input_shapes
from serving.export import loading, package
from serving.export.package import Signature, export_release
from serving.export.parity import reference
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
