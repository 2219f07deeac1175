"""The benchmarks of a step and of the variants run on a tiny model and write what their tables say."""

from __future__ import annotations

import argparse
import dataclasses
import shutil

import pytest
import torch

from benchmarks.training import step_speed, timed_step, variants
from models.onerec.config import OneRecConfig
from models.onerec.flops import train_flops
from models.onerec.kernels import Kernels, UsesKernels, use_kernels
from models.onerec.model import OneRec
from models.onerec.sizes import SIZES

TINY = {"items": 50, "static_features": 3, "codebook_size": 16}


def _config(**changes) -> OneRecConfig:
    small = {"short_len": 3, "positive_len": 4, "lifelong_len": 5, "static_buckets": 64, "item_head": False}
    return dataclasses.replace(SIZES["tiny"](**TINY), **(small | changes))


def _arguments(**changes) -> argparse.Namespace:
    given = {
        "device": "cpu",
        "precision": "fp32",
        "compile": False,
        "lengths": "full",
        "host_batches": False,
        "working_copies": False,
        "lock": None,
        "items": 50,
        "data": None,
        "size": "tiny",
        "variant": "point-wise",
        "batch": 4,
        "targets": 1,
        "steps": 2,
        "warmup": 1,
        "rounds": 3,
        "profile": False,
        "label": "fp32",
        "kernels": Kernels(),
    }
    return argparse.Namespace(**(given | changes))


@pytest.mark.parametrize("variant", list(step_speed.VARIANTS))
def test_a_step_trains_and_its_row_is_written(variant, tmp_path):
    config = step_speed.VARIANTS[variant](_config())
    result = step_speed.measure(config, _arguments(variant=variant, targets=5))
    assert len(result["ms"]) == 3 and result["losses"][-1] < result["losses"][0] + 1
    tflops = [train_flops(config, 5) * rate / 1e12 for rate in result["samples_per_s"]]
    assert result["tflops"] == pytest.approx(tflops, abs=0.06)
    for _ in range(2):
        step_speed.write(tmp_path / "table.md", result, "cpu")
    head, rule, *rows = [x for x in (tmp_path / "table.md").read_text().splitlines() if x.startswith("|")]
    assert len(rows) == 2 and head.count("|") == rule.count("|") == rows[0].count("|")


def test_the_choice_of_kernels_reaches_every_part_of_one_model_and_no_other():
    model, other = (OneRec(_config(), torch.zeros(50, 3, dtype=torch.long)) for _ in range(2))
    chosen = Kernels(few_queries=True, output_kept=False)
    use_kernels(model, chosen)
    asked = [module for module in model.modules() if isinstance(module, UsesKernels)]
    assert len(asked) > 10 and all(module.kernels == chosen for module in asked)
    assert all(module.kernels == Kernels() for module in other.modules() if isinstance(module, UsesKernels))
    assert step_speed.measure(_config(), _arguments(kernels=chosen))["losses"] == pytest.approx(
        step_speed.measure(_config(), _arguments())["losses"], abs=2e-4
    )


def test_full_histories_give_the_same_losses_under_a_mask():
    """What `--lengths masked` compares: the optimisation changes no loss."""
    full, masked = (step_speed.measure(_config(), _arguments(lengths=x))["losses"] for x in ("full", "masked"))
    assert full == pytest.approx(masked, abs=2e-4)


def test_bfloat16_compute_leaves_float32_gradients_near_those_of_float32():
    torch.manual_seed(0)
    trainers = [timed_step.Trainer(_config(), _arguments(precision=p)) for p in ("fp32", "bf16")]
    batch = timed_step.synthetic_batch(_config(), 8, 1, "full", 0)
    losses = [t.step(batch) for t in trainers]
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=2e-2, atol=0)
    for loss in losses:
        loss.backward()
    for (name, exact), half in zip(trainers[0].model.named_parameters(), trainers[1].model.parameters()):
        assert half.dtype == half.grad.dtype == torch.float32
        if exact.grad.norm() > 0.3:  # the direction of gradients that matter
            cosine = torch.cosine_similarity(exact.grad.flatten(), half.grad.flatten(), 0)
            assert cosine > 0.95, name


def test_mixed_lengths_are_within_their_limits_and_mostly_short():
    config = _config(lifelong_len=200)
    batch = timed_step.synthetic_batch(config, 64, 2, "mixed", 1)
    own = batch["lifelong_mask"].sum(1)
    assert batch["lifelong"].shape == (64, 200, 7) and own.min() >= 1 and own.float().mean() < 90
    assert (batch["lifelong_mask"].int().diff(dim=1) >= 0).all(), "right-aligned"


def test_variants_side_by_side(world, tmp_path, monkeypatch):
    folder = tmp_path / "prepared"
    shutil.copytree(world.tokenizer, folder / "tokenizer")
    (folder / "training").mkdir()
    for i, path in enumerate(world.training):
        shutil.copyfile(path, folder / "training" / f"{i}.parquet")
    shutil.copyfile(world.evaluation, folder / "evaluation.parquet")
    out = tmp_path / "variants.md"
    command = ["variants", "--data", str(folder), "--steps", "2", "--batch", "16", "--users", "6", "--width", "4"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(out)])
    variants.main()
    rows = [line for line in out.read_text().splitlines() if line.startswith(("| point", "| session", "| lazy"))]
    assert len(rows) == 3 and out.with_suffix(".json").exists()
    with pytest.raises(FileNotFoundError, match="neither training"):
        variants.parquet(tmp_path, "training")
