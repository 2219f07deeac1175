"""The figure of the load benchmark: every phase is named, ticks are round, the same numbers give the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.serving.plot import percentiles_plot


def test_the_figure_names_every_phase_and_repeats_its_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    phases = {name: rng.lognormal(mean, 0.4, 500) for name, mean in (("1 client", -4.5), ("3 x peak", 0.5))}
    for name in ("a.svg", "b.svg"):
        percentiles_plot(phases, tmp_path / "new" / name)
    text = (tmp_path / "new" / "a.svg").read_text()
    assert text == (tmp_path / "new" / "b.svg").read_text()
    assert all(f">{word}<" in text for word in (*phases, "0", "25", "50", "99", "10", "1,000"))
