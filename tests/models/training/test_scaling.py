"""The fit of L(N) = E + A / N^alpha against known laws, its intervals, and one rung of the ladder."""

from __future__ import annotations

import numpy as np
import pytest

from cli.scaling import write
from models.onerec.config import onerec_laptop
from models.training.scaling import Law, Run, bootstrap, fit, run_one, sized

SIZES = (10_000, 40_000, 160_000, 640_000, 2_560_000)


def _runs(law: Law, noise: float = 0.0, seeds: int = 3, draw: int = 0) -> list[Run]:
    rng = np.random.default_rng(draw)
    return [
        Run(width=8, seed=s, parameters=n, with_tables=n, loss=float(law(n)) + noise * rng.normal())
        for n in SIZES
        for s in range(seeds)
    ]


@pytest.mark.parametrize(
    "law", [Law(E=3.13, A=3660.0, alpha=0.489), Law(E=0.5, A=20.0, alpha=0.2), Law(E=0.0, A=9.0, alpha=0.1)]
)
def test_a_known_law_is_found(law):
    found = fit(_runs(law))
    assert found.alpha == pytest.approx(law.alpha, rel=0.01)
    np.testing.assert_allclose(found(np.array(SIZES)), law(np.array(SIZES)), rtol=1e-3)


def test_intervals_mostly_hold_the_truth_and_shrink_with_the_noise():
    law = Law(E=3.0, A=400.0, alpha=0.45)
    held = {"E": 0, "alpha": 0}
    for draw in range(10):
        wide, narrow = (bootstrap(_runs(law, noise, draw=draw), seed=1, draws=60) for noise in (0.05, 0.005))
        for name in held:
            (low, high), inner = wide[name], narrow[name]
            held[name] += low <= getattr(law, name) <= high
            assert inner[1] - inner[0] < high - low
    assert min(held.values()) >= 7


def test_a_loss_that_rises_with_size_gives_no_negative_term():
    runs = [Run(width=8, seed=0, parameters=n, with_tables=n, loss=5.0 + i) for i, n in enumerate(SIZES)]
    law = fit(runs)
    assert law.A == 0 and pytest.approx(7.0) == law.E


def test_two_sizes_are_refused():
    with pytest.raises(ValueError, match="2 sizes cannot carry a fit"):
        fit([Run(width=8, seed=0, parameters=n, with_tables=n, loss=1.0) for n in SIZES[:2]])


def test_the_reference_width_is_the_laptop_and_widths_are_checked():
    shape = {"codebook_size": 4, "items": 5, "static_features": 3}
    same = onerec_laptop(**shape)
    assert sized(96, **shape) == same
    with pytest.raises(ValueError, match="width is 20"):
        sized(20, **shape)


def test_a_rung_of_the_ladder_and_the_page(world, tmp_path):
    sets = {"training_sets": world.training, "evaluation_set": world.evaluation, "tokenizer": world.tokenizer}
    run = run_one(**sets, width=8, seed=1, steps=2, progress=lambda _: None)
    assert run.parameters < run.with_tables and 3 < run.loss < 12
    again = [Run(**{**run.__dict__, "parameters": run.parameters * k, "loss": run.loss - k}) for k in (1, 2, 3)]
    page = write(again, tmp_path, "world")
    assert f"{run.parameters:,}" in page and "alpha = " in page
    drawn = (tmp_path / "scaling_world.svg").read_text()
    assert "Held-out NTP loss over model size, world" in drawn and drawn.count("<use") >= 3  # a mark a run
