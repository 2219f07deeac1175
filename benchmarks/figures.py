"""How the figures of the benchmarks look and are written: SVG by matplotlib, the same bytes for the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

GRID = "#e4e4e4"


def finish(axes: Any) -> None:
    """A light grid behind the data, no frame above and right of it."""
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a small SVG whose text stays text; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "onerec"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
