"""The page of a day: report.json and report.html in the run folder, each written whole or not at all.

    write_report(collect(workspace, day), workspace.run_dir(day))

The page is one file: no script, no font, no image from elsewhere. All text is escaped: captions come from users.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Undefined
from markupsafe import Markup

from datasets import cleaning
from kfp_components.report.charts import Bar, Reference, Series, bar_chart, line_chart
from releases.describe import flatten
from releases.gates import METRIC

NAMES = {
    "onerec": "OneRec (this release)",
    "onerec_pretrained": "OneRec before alignment",
    "production": "Previous release",
    "most_popular_all": "Most popular, all days",
    "most_popular_3d": "Most popular, 3 days",
}
BOUNDS = {"min_value": "at least", "max_value": "at most"}
FEW_POSITIVES = 30  # below it an AUC says little
LAST_DAYS = 14  # log days drawn
RUNNING_MEAN = 9  # alignment steps


def write_report(report: dict[str, Any], run_dir: Path) -> None:
    """Write report.json and report.html into `run_dir`; a reader sees the old or the new file, never a part."""
    text, html = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", render(report)
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, content in (("report.json", text), ("report.html", html)):
        staged = run_dir / f".{name}-{uuid.uuid4().hex}"
        try:
            with open(staged, "w", encoding="utf-8") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(staged, run_dir / name)
        finally:
            staged.unlink(missing_ok=True)


def render(report: dict[str, Any]) -> str:
    """The HTML of a report; a number that is missing shows as a dash, a section that is missing with its reason."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=ChainableUndefined,
    )
    filters = (number, within, share, count, duration, gib, words, fate, said, observed, by_positives, by_rule)
    env.filters |= {function.__name__: function for function in filters}
    return env.get_template("template.html").render(
        r=report,
        v=report["verdict"],
        release=report["release"],
        charts=_charts(report),
        names=NAMES,
        flatten=flatten,
        few=FEW_POSITIVES,
        running=RUNNING_MEAN,
    )


def number(value: Any, digits: int = 4) -> str:
    """0.1957, a whole number as it is, a dash when unknown."""
    return "–" if _unknown(value) else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def within(values: Any, key: str, digits: int = 3) -> str:
    """0.712 (0.704–0.721): a value of `values` with its 95 % interval, as far as they are known."""
    low, high = values.get(f"{key}_interval") or (None, None)
    text = number(values.get(key), digits)
    return text if _unknown(low) else f"{text} ({number(low, digits)}–{number(high, digits)})"


def share(value: Any) -> str:
    """93.4 %. Only exactly all is 100 %, only exactly nothing is 0 %."""
    if _unknown(value):
        return "–"
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    if 0.9995 <= value < 1:
        return "over 99.9 %"
    return "under 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def count(value: Any) -> str:
    return "–" if _unknown(value) else f"{value:,}"


def duration(seconds: Any) -> str:
    """9.4 s, 3 min 12 s."""
    if _unknown(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def gib(mib: Any) -> str:
    return "–" if _unknown(mib) else f"{mib / 1024:.2f} GiB"


def words(name: str) -> str:
    return name.replace("_", " ")


def fate(rule: str) -> str:
    """What the ingest does with the rows that a rule of datasets.cleaning counts; the rule may stand behind a table."""
    name = rule.rpartition(".")[2]
    if name == "rows_read":
        return ""
    return "dropped" if name == "duplicates" else "set aside" if name in cleaning.QUARANTINED else "kept"


def said(value: Any) -> str:
    """A small mapping or the first of several, as words: "user_id 3, item_id 5"."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, dict):
        return ", ".join(f"{BOUNDS.get(key, words(key))} {one}" for key, one in value.items())
    return "–" if value is None or isinstance(value, Undefined) else str(value)


def observed(result: dict[str, Any]) -> str:
    """What a check saw: the share of unexpected rows where it looks at rows, else the value itself."""
    value = result.get("observed")
    if _unknown(value):
        return said(value)
    return f"{share(value)} of the rows" if result.get("unexpected_count") is not None else f"{value:,}"


def by_rule(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result a rule, with the number of `days` it was checked on."""
    rules: dict[tuple, dict[str, Any]] = {}
    for result in results:
        key = tuple(result.get(k) for k in ("table", "column", "rule", "expectation", "severity"))
        rules.setdefault(key, {**result, "days": 0})["days"] += 1
    return list(rules.values())


def by_positives(objectives: dict[str, Any]) -> list[tuple[str, Any]]:
    """The objectives, those with most positives (and so the surest AUC) first."""
    return sorted(objectives.items(), key=lambda item: -item[1].get("positives", 0))


def _unknown(value: Any) -> bool:
    return not isinstance(value, int | float)


def _charts(report: dict[str, Any]) -> dict[str, Any]:
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
