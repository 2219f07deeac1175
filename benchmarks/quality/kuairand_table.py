"""KuaiRand-Pure's table: every model on the unseen positives of 2022-05-06, with intervals and by slice.

    python -m benchmarks.quality.kuairand_table --data LOGS/kuairand-pure --lists build/quality/kuairand_lists

Floors and EASE are computed here (a minute or two on one CPU core); trained models come as lists, which
`benchmarks.quality.kuairand_trained`, `..._onerec` and `cascade` wrote. A model's number is the mean over its seeds;
the interval is over users, of each user's mean over seeds. Writes kuairand.md, kuairand.json for the plots, and each
user's recall@50 by every row (kuairand_users.npz). Rows of the page that `--lists` holds nothing of stay as they are,
and new ones are compared with them, so that one model can be trained anew without the others; `--anew` drops them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np

from benchmarks.quality import lists
from benchmarks.quality.kuairand import LAMBDA_SHOWN, Day, baselines, read_day
from benchmarks.quality.kuairand_trained import CO_OCCURRENCE, SHOWN
from benchmarks.quality.lists import COLUMNS
from benchmarks.quality.report import footer, table
from models.evaluation.metrics import bootstrap_interval, ranking_metrics
from models.evaluation.slices import slices

HERE = Path(__file__).resolve().parent
# What every model is compared with, user by user: the best closed form, the sequence model on either history, and both.
BARS = (f"EASE of everything shown, lambda {LAMBDA_SHOWN:g}", "SASRec", SHOWN, SHOWN + CO_OCCURRENCE)
KEPT_OF_MODEL = ("epochs", "recipe", "later", "candidates", "weight", "weights")  # of what lists say about themselves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The lists [U, K] of a model, one array a seed, of item ids; and what is said about it."""

    name: str
    ranked: list[np.ndarray]
    about: dict[str, object]

    def values(self, wanted: list[np.ndarray], users: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Per-user metrics of every seed [S, U]."""
        found = [ranking_metrics(r if users is None else r[users], wanted) for r in self.ranked]
        return {c: np.stack([f[c] for f in found]) for c in COLUMNS}


def models(day: Day, trained: list[lists.Lists]) -> list[Model]:
    """Floors first, then trained models in the order of their names."""
    out = [
        Model(name=name, ranked=[np.where(index >= 0, day.items[index], -1)], about={})
        for name, index in baselines(day).items()
    ]
    for name in dict.fromkeys(found.model for found in trained):
        mine = [found for found in trained if found.model == name]
        about = {k: v for k, v in mine[0].about.items() if k in KEPT_OF_MODEL}
        out.append(Model(name=name, ranked=[found.of(day.user_id) for found in mine], about=about))
    return out


def earlier(page: Path, users: np.ndarray, made: set[str]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The page's rows, as summary() gave them, not made now and every user's recall@50 by each, where kept."""
    told, kept = page.with_suffix(".json"), users_of(page)
    old = json.loads(told.read_text()) if told.exists() else {"users": 0, "models": []}
    if old["users"] != len(users):
        return [], {}
    lines = [line for line in old["models"] if line["model"] not in made]
    with np.load(kept, allow_pickle=False) if kept.exists() else contextlib.nullcontext({}) as file:
        if not np.array_equal(file.get("user_id"), users):
            return lines, {}
        return lines, {line["model"]: file[line["model"]] for line in lines if line["model"] in file}


def made_by(found: lists.Lists) -> str:
    """Hardware and commit of a training."""
    return f"{found.about['device']}, commit {found.about['commit']}"


def users_of(page: Path) -> Path:
    """Where each user's recall@50 by every row of the page lies."""
    return page.with_name(f"{page.stem}_users.npz")


def summary(rows: list[Model], wanted: list[np.ndarray], known: dict[str, np.ndarray] | None = None) -> list[dict]:
    """Each model's means, deviations over seeds, interval, and paired differences of recall@50 to the bars.

    known: every user's recall@50 by bars that are not among the rows.
    """
    bars = {name: recall for name, recall in (known or {}).items() if name in BARS}
    bars |= {m.name: m.values(wanted)["recall@50"].mean(0) for m in rows if m.name in BARS}
    out = []
    for model in rows:
        values = model.values(wanted)
        recall = values["recall@50"].mean(0)
        seeds = len(model.ranked)
        line: dict = {"model": model.name, "seeds": seeds, "about": model.about}
        line |= {c: float(values[c].mean()) for c in COLUMNS}
        line |= {f"{c}_sd": float(values[c].mean(1).std(ddof=1)) if seeds > 1 else None for c in COLUMNS}
        line["interval"] = list(bootstrap_interval(recall, 0))
        others = {name: bar for name, bar in bars.items() if name != model.name}
        line["minus"] = {name: list(bootstrap_interval(recall - bar, 0)) for name, bar in others.items()}
        out.append(line)
    return out


def number(value: float, deviation: float | None) -> str:
    return f"{value:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--lists", type=Path, help="lists of trained models (default: floors and EASE alone)")
    p.add_argument("--day", type=int, default=20220506)
    p.add_argument("--out", type=Path, default=HERE / "kuairand.md")
    p.add_argument("--anew", action="store_true", help="leave out rows of the page that no list is given for")
    args = p.parse_args()
    day = read_day(args.data, args.day)
    trained = lists.read(args.lists) if args.lists else []
    wanted = [day.items[w] for w in day.wanted]
    rows = models(day, trained)
    count = np.asarray(day.positive_UN.sum(0)).ravel()
    order = np.argsort(-count, kind="stable")
    order = order[count[order] > 0]
    parts = slices(wanted, [day.items[s] for s in day.seen], (day.items[order], count[order]))
    before, known = ([], {}) if args.anew else earlier(args.out, day.user_id, {m.name for m in rows})
    lines = summary(rows, wanted, known)
    for model, line in zip(rows, lines):
        line["trained_on"] = sorted({made_by(t) for t in trained if t.model == model.name})
        line["slices"] = {name: float(model.values(w, u)["recall@50"].mean()) for name, u, w in parts}
    bars = [bar for bar in BARS if any(bar in line["minus"] for line in lines)]  # of which each user's recall is known
    lines += before
    body: list[list[str]] = []
    for line in lines:
        differences = [line["minus"].get(bar) for bar in bars]
        cells = [str(line["seeds"]), *(number(line[c], line[f"{c}_sd"]) for c in COLUMNS)]
        cells += ["{:.4f} to {:.4f}".format(*line["interval"])]
        body.append([line["model"], *cells, *("{:+.4f} to {:+.4f}".format(*d) if d else "-" for d in differences)])
    by_slice = [[line["model"], *(f"{line['slices'][name]:.4f}" for name, _, _ in parts)] for line in lines]
    head = ["model", "seeds", *COLUMNS, "95 % of recall@50", *(f"recall@50 minus {bar}" for bar in bars)]
    slice_head = ["recall@50", *(f"{name} ({len(users):,})" for name, users, _ in parts)]
    made = sorted({by for line in lines for by in line.get("trained_on", [])})
    said = [f"{x['model']}: " + ", ".join(f"{k} {v}" for k, v in x["about"].items()) for x in lines if x["about"]]
    trained_on = f"Trained on: {'; '.join(made)}. " if made else ""
    trained_on += f"Kept from the page before: {', '.join(x['model'] for x in before)}. " if before else ""
    args.out.write_text(
        f"# KuaiRand-Pure, unseen positives of {args.day}: {len(wanted):,} users, {len(day.items):,} items\n\n"
        f"{table(head, body)}\nMean ± standard deviation over seeds; 95 % intervals by bootstrap over users. Users "
        "whom a model gave no list count as misses: at most "
        f"{max((len(wanted) - len(t.user_id) for t in trained), default=0)} in rows that are not kept "
        "from an older page (docs/decisions/quality.md).\n\n"
        f"By slice (users in brackets):\n\n{table(slice_head, by_slice)}\n"
        + (f"Chosen on the day before: {'; '.join(said)}.\n\n" if said else "")
        + (f"{trained_on}Floors and this page:\n" if trained_on else "")
        + footer([], "kuairand_table")
    )
    args.out.with_suffix(".json").write_text(json.dumps({"users": len(wanted), "models": lines}, indent=1) + "\n")
    recall = known | {m.name: m.values(wanted)["recall@50"].mean(0).astype(np.float32) for m in rows}
    np.savez_compressed(users_of(args.out), user_id=day.user_id, **recall)
    print(args.out)


if __name__ == "__main__":
    main()
