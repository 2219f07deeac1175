"""A line plot as SVG, without a plotting library: one curve a name over 0, 1, 2, ..., on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 360, 60, 40
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#5d4a8c", "#7a7a7a")


def lines_svg(curves: Mapping[str, np.ndarray], x_name: str, y_name: str) -> str:
    """All values must be above zero."""
    low = 10 ** np.floor(np.log10(min(float(c.min()) for c in curves.values())))
    high = 10 ** np.ceil(np.log10(max(float(c.max()) for c in curves.values())))
    decades = np.log10(high / low)
    most = max(len(c) for c in curves.values()) - 1

    def place(i: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 150) * i / most
        return f"{x:.1f},{(HEIGHT - BOTTOM) * (1 - np.log10(value / low) / decades) + 10:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 20}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT + 20}" fill="white"/>',
    ]
    for power in range(round(decades) + 1):
        value = low * 10**power
        start, end = place(0, value), place(most, value)
        parts.append(f'<polyline points="{start} {end}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{start.split(",")[1]}" text-anchor="end">{value:g}</text>')
    for i in range(0, most + 1, max(1, most // 5)):
        parts.append(f'<text x="{place(i, low).split(",")[0]}" y="{HEIGHT - 10}" text-anchor="middle">{i}</text>')
    for n, (name, curve) in enumerate(curves.items()):
        points = " ".join(place(i, float(value)) for i, value in enumerate(curve))
        colour = COLOURS[n % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{WIDTH - 140}" y="{24 + 18 * n}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{(WIDTH - 90) / 2}" y="{HEIGHT + 12}" text-anchor="middle">{x_name}</text>')
    middle = HEIGHT / 2
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{y_name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
