"""Charts of the report as inline SVG: lines over steps, and horizontal bars with intervals and a reference line.

    bar_chart(title="recall", x_label="recall@50", bars=[Bar(label="OneRec", value=0.19, text="0.190")])

Colours come from CSS classes of the page, so that one drawing serves light, dark and print. All text is escaped. The
view box is 420 wide, which keeps the text readable both in half a laptop page and on a phone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

WIDTH, CHAR = 420, 7.4  # CHAR: width allowed for a letter at 12 px, to keep labels inside the drawing
LABEL_GAP = 14  # px between the labels at the ends of lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One line: `values` over `steps`, and the unit-free text behind its name at the right end."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    text: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar. `value` None draws no bar, only `text`. `kind`: main, plain or muted."""

    label: str
    value: float | None
    text: str
    low: float | None = None
    high: float | None = None
    kind: str = "plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """A dashed line at `value`: a floor, a limit, a maximum."""

    value: float
    label: str


def line_chart(
    *,
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    show: Callable[[float], str],
    from_zero: bool = False,
    smooth: int = 1,
) -> Markup:
    """Lines over steps; with `smooth` > 1 the points stay faint and a centred running mean is drawn over them."""
    left, right, top, bottom, height = 46, 96, 26, 42, 250
    drawn = [(s, list(s.steps), list(s.values)) for s in series if len(s.values)]
    if not drawn:
        return Markup("")
    every = [v for _, _, values in drawn for v in values]
    low, high = (0.0 if from_zero else min(every)), max(every)
    ticks = _ticks(low, high if high > low else low + max(abs(low), 1e-3) * 0.1)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(x[0] for _, x, _ in drawn), max(x[-1] for _, x, _ in drawn)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - first) / max(last - first, 1e-9) * (WIDTH - left - right),
            top + (high - y) / (high - low) * (height - top - bottom),
        )

    parts = [_text(2, 12, y_label, "axis-title")]
    for tick in ticks:
        y = at(first, tick)[1]
        parts.append(_line(left, y, WIDTH - right, y, "grid"))
        parts.append(_text(left - 6, y + 4, show(tick), "tick", "end"))
    for tick in sorted({first, *(t for t in _ticks(first, last) if first < t < last), last}):
        x = at(tick, low)[0]
        if tick in (first, last) or min(x - left, WIDTH - right - x) > 40:
            parts.append(_text(x, height - bottom + 16, f"{tick:,.0f}", "tick", "middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 6, x_label, "axis-title", "middle"))
    ends = []
    for i, (s, xs, ys) in enumerate(drawn):
        raw = [at(x, y) for x, y in zip(xs, ys)]
        if smooth > 1:
            parts += [_shape("circle", cx=x, cy=y, r=1.6, class_=f"dot s{i}") for x, y in raw]
        line = [at(x, y) for x, y in zip(xs, _running_mean(ys, smooth))]
        parts.append(_shape("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in line), class_=f"line s{i}"))
        ends.append((line[-1][1], i, f"{s.name} {s.text}".strip()))
    for y, i, text in _spread(ends):
        parts.append(_text(WIDTH - right + 6, y + 4, text, f"end s{i}"))
    said = "; ".join(f"{s.name} from {show(ys[0])} to {show(ys[-1])}" for s, _, ys in drawn)
    return _svg(height, title, f"{title}. {y_label} over {x_label}: {said}.", parts)


def bar_chart(
    *,
    title: str,
    x_label: str,
    bars: Sequence[Bar],
    reference: Reference | None = None,
    maximum: float | None = None,
) -> Markup:
    """Horizontal bars from zero, whiskers where an interval is given. `maximum`: the axis reaches at least that far."""
    if not bars:
        return Markup("")
    left = 12 + CHAR * max(len(b.label) for b in bars)
    right = 14 + CHAR * max(len(b.text) for b in bars)
    row, top = 25, 20
    height = top + row * len(bars) + 22
    reach = [v for b in bars for v in (b.value, b.high) if v is not None]
    high = max([*reach, maximum or 0.0, reference.value if reference else 0.0]) or 1.0
    scale = (WIDTH - left - right) / high
    parts, texts = [], []  # texts last, so that no line runs over them
    for i, b in enumerate(bars):
        y = top + row * i
        texts.append(_text(left - 8, y + 16, b.label, "bar-label" + (" strong" if b.kind == "main" else ""), "end"))
        end = left
        if b.value is not None:
            width = max(b.value * scale, 0.0)
            parts.append(_shape("rect", x=left, y=y + 4, width=width, height=row - 9, rx=2, class_=f"bar {b.kind}"))
            end = left + width
        if b.low is not None and b.high is not None:
            a, z, middle = left + b.low * scale, left + b.high * scale, y + 4 + (row - 9) / 2
            parts += [_line(a, middle, z, middle, "whisker")]
            parts += [_line(x, middle - 4, x, middle + 4, "whisker") for x in (a, z)]
            end = max(end, z)
        texts.append(_text(end + 6, y + 16, b.text, "value" + (" strong" if b.kind == "main" else "")))
    floor = top + row * len(bars)
    parts.append(_line(left, top, left, floor, "base"))
    if reference:
        x = left + reference.value * scale
        parts.append(_line(x, top - 4, x, floor, "reference"))
        half = CHAR * len(reference.label) / 2
        texts.append(_text(min(max(x, half), WIDTH - half), 13, reference.label, "reference-label", "middle"))
    texts.append(_text(max(2, min(left, WIDTH - CHAR * len(x_label))), floor + 16, x_label, "axis-title"))
    said = "; ".join(f"{b.label} {b.text}" for b in bars)
    line = f" {reference.label}." if reference else ""
    return _svg(height, title, f"{title}. {x_label}: {said}.{line}", parts + texts)


def _svg(height: float, title: str, described: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        WIDTH, round(height), described, title, Markup("").join(parts)
    )


def _text(x: float, y: float, text: str, class_: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", anchor, class_, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return _shape("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _shape(tag: str, **attributes: float | str) -> Markup:
    shown = {k.rstrip("_"): f"{v:.1f}" if isinstance(v, float) else v for k, v in attributes.items()}
    return Markup("<{} {}/>").format(
        Markup(tag), Markup(" ").join(Markup('{}="{}"').format(Markup(k), v) for k, v in shown.items())
    )


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about `wanted` steps of 1, 2 or 5 times a power of ten."""
    rough = max(high - low, 1e-9) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    start = math.floor(low / step + 1e-9)
    return [round(i * step, 10) for i in range(start, math.ceil(high / step - 1e-9) + 1)]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    half = window // 2
    spans = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(s) / len(s) for s in spans]


def _spread(ends: list[tuple[float, int, str]]) -> list[tuple[float, int, str]]:
    """Push labels apart downwards so that none covers another."""
    placed: list[tuple[float, int, str]] = []
    for y, i, text in sorted(ends):
        placed.append((max(y, placed[-1][0] + LABEL_GAP) if placed else y, i, text))
    return placed
