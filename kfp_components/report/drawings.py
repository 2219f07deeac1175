"""Which charts the page shows, and from which numbers of the report; charts.py draws them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from kfp_components.report.charts import Bar, Reference, Series, bar_chart, line_chart
from kfp_components.report.wording import by_positives, count, duration, gib, number, share, words
from releases.gates import METRIC

NAMES = {
    "onerec": "OneRec (this release)",
    "onerec_pretrained": "OneRec before alignment",
    "production": "Previous release",
    "most_popular_all": "Most popular, all days",
    "most_popular_3d": "Most popular, 3 days",
}
FEW_POSITIVES = 30  # below it an AUC says little
LAST_DAYS = 14  # log days drawn
RUNNING_MEAN = 9  # alignment steps


def charts_of(report: dict[str, Any]) -> dict[str, Any]:
    """Every drawing by name; a section that is missing has none."""
    makers = {
        "data": _days,
        "tokenizer": _tokenizer,
        "pretrain": _loss,
        "evaluation": _recall,
        "reward": _aucs,
        "align": _alignment,
    }
    drawn = {section: make(report[section]) for section, make in makers.items() if report[section]}
    return drawn | {"time": _time(report), "memory": _memory(report)}


def _days(data: dict[str, Any]) -> Markup:
    prefix, bars = "impressions/dt=", []
    for name, table in sorted(data.get("tables", {}).items()):
        if name.startswith(prefix):
            day, evaluation = name.removeprefix(prefix), name == f"{prefix}{data.get('evaluation_day')}"
            label, kind = (f"{day} (evaluation)", "muted") if evaluation else (day, "plain")
            bars.append(Bar(label=label, value=table.get("rows"), text=count(table.get("rows")), kind=kind))
    return bar_chart(title="Impressions a log day", x_label="impressions after cleaning", bars=bars[-LAST_DAYS:])


def _tokenizer(t: dict[str, Any]) -> Markup:
    use, entropy, most = t.get("utilization", []), t.get("entropy", []), t.get("max_entropy")
    return bar_chart(
        title="Codebook utilisation",
        x_label="codes in use, % of the codebook",
        bars=[Bar(label=f"level {i + 1}", value=u, text=share(u)) for i, u in enumerate(use)],
        maximum=1.0,
    ) + bar_chart(
        title="Entropy of the codes",
        x_label="entropy of the codes, nats",
        bars=[Bar(label=f"level {i + 1}", value=e, text=number(e, 2)) for i, e in enumerate(entropy)],
        reference=None if most is None else Reference(value=most, label=f"maximum {most:.2f}"),
    )


def _loss(p: dict[str, Any]) -> Markup:
    curve = p.get("loss", [])
    keys = ["loss", *sorted(k for k in (curve[0] if curve else {}) if k.startswith("loss_c"))]
    series = [
        _series(curve, k, "total" if k == "loss" else f"level {int(k.removeprefix('loss_c')) + 1}", digits=2)
        for k in keys
    ]
    return line_chart(
        title="Pre-training loss",
        x_label="training step",
        y_label="loss, nats an item (total = sum of the levels)",
        series=series,
        show=lambda v: f"{v:.4g}",
        from_zero=True,
    )


def _recall(e: dict[str, Any]) -> Markup:
    bars, rows = [], e.get("rows", [])
    for row in rows:
        low, high = row.get(f"{METRIC}_interval") or (None, None)
        kind = "main" if row["name"] == "onerec" else "muted" if row["name"].startswith("most_popular") else "plain"
        label, value = NAMES.get(row["name"], row["name"]), row.get(METRIC)
        bars.append(Bar(label=label, value=value, text=number(value), low=low, high=high, kind=kind))
    floor = max((r[METRIC] for r in rows if r["name"].startswith("most_popular")), default=None)
    return bar_chart(
        title="recall@50 beside the floors",
        x_label="recall@50, mean over users, 95 % interval",
        bars=bars,
        reference=None if floor is None else Reference(value=floor, label=f"better floor {floor:.4f}"),
    )


def _aucs(reward: dict[str, Any]) -> Markup:
    bars, score = [], reward.get("p_score", {})
    for name, objective in by_positives(reward.get("objectives", {})):
        auc, rare = score.get(name, {}).get("auc"), objective.get("positives", 0) < FEW_POSITIVES
        low, high = score.get(name, {}).get("auc_interval") or (None, None)
        label = "not " + words(name) if name == "hate" else words(name)
        kind = "muted" if rare else "plain"
        bars.append(Bar(label=label, value=auc, text=number(auc, 3), low=low, high=high, kind=kind))
    return bar_chart(
        title="AUC of the P-Score for each objective",
        x_label="AUC of the one P-Score, held-out users, 95 % interval",
        bars=bars,
        reference=Reference(value=0.5, label="chance 0.5"),
        maximum=1.0,
    )


def _alignment(a: dict[str, Any]) -> list[Markup]:
    curve = a.get("curve", [])
    reward = line_chart(
        title="Reward of the rollouts",
        x_label="alignment step",
        y_label="mean P-Score of the rollouts",
        series=[_series(curve, "reward", "reward")],
        show=lambda v: f"{v:.3g}",
        smooth=RUNNING_MEAN,
    )
    legality = line_chart(
        title="Legality of free samples",
        x_label="alignment step",
        y_label="legal share of free samples, %",
        series=[_series(curve, "legality", "legality")],
        show=lambda v: f"{100 * v:.3g}",
        smooth=RUNNING_MEAN,
    )
    return [reward, legality]


def _series(curve: Iterable[dict[str, Any]], key: str, name: str, digits: int | None = None) -> Series:
    points = [(p["step"], p[key]) for p in curve if p.get(key) is not None]
    text = "" if digits is None or not points else f"{points[-1][1]:.{digits}f}"
    return Series(name=name, steps=[x for x, _ in points], values=[y for _, y in points], text=text)


def _time(report: dict[str, Any]) -> Markup:
    bars = [
        Bar(
            label=s["step"],
            value=s.get("seconds"),
            text="missing" if "missing" in s else duration(s["seconds"]) + (" (reused)" if s["reused"] else ""),
            kind="muted" if s.get("reused") else "plain",
        )
        for s in report["steps"]
    ]
    return bar_chart(title="Time a step", x_label="seconds", bars=bars)


def _memory(report: dict[str, Any]) -> Markup:
    limit = report["totals"]["peak_limit_mib"] / 1024
    bars = [
        Bar(
            label=s["step"],
            value=s["peak_mib"] / 1024 if "peak_mib" in s else None,
            text="missing" if "missing" in s else gib(s["peak_mib"]),
            kind="muted" if s.get("reused") else "plain",
        )
        for s in report["steps"]
    ]
    line = Reference(value=limit, label=f"limit {limit:g} GiB")
    return bar_chart(title="Peak memory a step", x_label="resident memory, GiB", bars=bars, reference=line)
