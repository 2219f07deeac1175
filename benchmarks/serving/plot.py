"""The figure of the load benchmark: latency over percentiles, one curve a phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import finish, save


def percentiles_plot(seconds: Mapping[str, Sequence[float]], path: Path) -> None:
    """Latency in ms on a logarithmic axis over the percentiles 0 to 99, one curve a phase."""
    figure = Figure(figsize=(7.2, 4.2))
    axes = figure.subplots()
    percent = np.arange(100)
    for name, values in seconds.items():
        axes.plot(percent, 1000 * np.percentile(values, percent), linewidth=1.6, label=name)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    axes.set_yscale("log")
    axes.set_xticks([0, 25, 50, 75, 90, 99])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("percentile of the answered requests")
    axes.set_ylabel("latency, ms")
    finish(axes)
    save(figure, path)
