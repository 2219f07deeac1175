"""KuaiRand-Pure: SASRec and a two-tower model, in the protocol of `kuairand.py`.

    python -m benchmarks.quality.kuairand_trained --data LOGS/kuairand-pure --prepared build/quality/kuairand     # once
    python -m benchmarks.quality.kuairand_trained --prepared build/quality/kuairand --device cuda

The first writes, for the last two days of the log, each user's positives and all they were shown before the day, in
their order, and what is wanted of the day (.npz); the second needs PyTorch and NumPy alone. The number of epochs is
chosen on the day before (recall@50 there); a second model then trains for as long on everything before the day. Three
seeds. Lists go to `--lists`, for `benchmarks.quality.kuairand_table`. Every position of a user predicts the next
positive against all items; "SASRec, everything shown" is the same model on all impressions, whatever the user made of
them. "+ co-occurrence of the shown" adds EASE of all impressions to the log-probability, as `joint.py` does for OneRec;
its weight is chosen with the epochs, and `--lists` keeps both in epochs.json. What is there is not trained again. The
two-tower model's user is the mean of the item vectors so far, newer ones weighing more, through a feed-forward; its
item an embedding through another: no order but the weights, and a dot product, so that an index can serve it.

Legend: U users, B users of a batch, T events, D width, N items.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import commit, hardware
from benchmarks.quality import lists
from benchmarks.quality.data import IGNORED, MAX_HISTORY, Batches, padded
from benchmarks.quality.kuairand import LAMBDA_SHOWN, ease
from benchmarks.quality.lists import COLUMNS, TOP
from benchmarks.quality.protocol import autocast
from benchmarks.quality.sasrec import SASRec, SASRecConfig, sampled_softmax
from benchmarks.quality.steps import Steps, adam
from models.evaluation.metrics import ranking_metrics

DAYS = {"choose": 20220505, "test": 20220506}
SHOWN = "SASRec, everything shown"
MODELS = ("SASRec", SHOWN, "two-tower")
CO_OCCURRENCE = " + co-occurrence of the shown"
WEIGHTS = (0.0, 3.0, 6.0, 12.0, 24.0, 48.0)
WIDTH, DROPOUT, RATE, BATCH, MOST_EPOCHS, DECAY = 128, 0.3, 1e-3, 128, 60, 0.9


class TwoTower(nn.Module):
    """User vectors of every position of a history, and item vectors; item N is the padding."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.item = nn.Embedding(num_items + 1, WIDTH)
        nn.init.normal_(self.item.weight, std=WIDTH**-0.5)
        self.user_tower, self.item_tower = (
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(2)
        )
        self.drop = nn.Dropout(DROPOUT)

    def table(self) -> Tensor:
        """The item tower's vectors [N + 1, D]."""
        x = self.drop(self.item.weight)
        return x + self.item_tower(x)

    def forward(self, items_BT: Tensor, table_ND: Tensor) -> Tensor:
        """[B, T, D]: at t the mean of the events up to t, an event one place older weighing DECAY times as much."""
        real_BT1 = (items_BT < self.num_items)[..., None].to(table_ND.dtype)
        T = items_BT.shape[1]
        back_TT = torch.arange(T, device=items_BT.device)[:, None] - torch.arange(T, device=items_BT.device)
        weight_TT = torch.where(back_TT >= 0, DECAY ** back_TT.clamp_min(0).float(), 0.0).to(table_ND.dtype)
        sums = torch.einsum("ts,bsd->btd", weight_TT, self.drop(self.item(items_BT)) * real_BT1)
        mean = sums / torch.einsum("ts,bsd->btd", weight_TT, real_BT1).clamp_min(1e-6)
        return mean + self.user_tower(mean)


def prepare(data: Path, out: Path) -> None:
    """One .npz a day: items, offsets (positives end to end), shown_items, shown_offsets (all that was shown), rows, and
    seen and wanted of each row, end to end.

    All are indices into item_id; user_id holds the rows' users.
    """
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    from benchmarks.quality.kuairand import HISTORY, LOG, POSITIVE, read_day

    out.mkdir(parents=True, exist_ok=True)
    log = pc.read_csv(data / LOG).to_pandas().drop_duplicates().sort_values("time_ms", kind="stable")
    old = pq.read_table(data / HISTORY).to_pandas().sort_values(["user_id", "pos"], kind="stable")
    users = np.unique(np.concatenate([log["user_id"], old["user_id"]]))
    for day in DAYS.values():
        known = read_day(data, day)
        new = log[log["date"] < day]
        user = np.searchsorted(users, np.concatenate([old["user_id"], new["user_id"]]))
        item = np.searchsorted(known.items, np.concatenate([old["video_id"], new["video_id"]]))
        good = np.concatenate([(old["long_view"] > 0) | (old["is_like"] > 0), new[list(POSITIVE)].any(axis=1)])
        order = np.argsort(user, kind="stable")  # the history before the log, each in its order
        kept = {"": order[good[order]], "shown_": order}
        arrays: dict[str, Any] = {f"{name}items": item[rows].astype(np.int32) for name, rows in kept.items()}
        for name, rows in kept.items():
            arrays[f"{name}offsets"] = np.append(0, np.cumsum(np.bincount(user[rows], minlength=len(users))))
        flat = {name: (getattr(known, name)) for name in ("seen", "wanted")}
        for name, lines in flat.items():
            arrays |= {name: np.concatenate(lines).astype(np.int32), f"{name}_ends": np.cumsum([len(x) for x in lines])}
        arrays |= {"rows": known.rows, "item_id": known.items, "user_id": known.user_id}
        np.savez(out / f"{day}.npz", num_items=len(known.items), **arrays)


def sequences_of(kind: str, day: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Each user's items in their order, as a model of that kind reads them. Raises ValueError for an older file."""
    name = "shown_" if kind == SHOWN else ""
    if f"{name}items" not in day:
        raise ValueError(f"the prepared day holds no {name}items; prepare it again with --data")
    return np.split(day[f"{name}items"].astype(np.int64), day[f"{name}offsets"][1:-1])


def shown_scores(day: dict[str, np.ndarray]) -> np.ndarray:
    """EASE of everything shown, of each of the day's users [U, N]."""
    ends, items = day["shown_offsets"], day["shown_items"]
    row = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    shown_UN = sp.csr_matrix((np.ones(len(items)), (row, items)), shape=(len(ends) - 1, int(day["num_items"])))
    shown_UN.data[:] = 1
    return np.asarray(shown_UN[day["rows"]] @ ease(shown_UN, LAMBDA_SHOWN), np.float32)


def train(
    kind: str,
    day: dict[str, np.ndarray],
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    every: int = 0,
    width: int | None = None,
) -> tuple[SASRec | TwoTower, list[tuple[int, float]]]:
    """The model after `epochs`; with `every` recall@50 after each so many (the curve), and the curve's best model.

    width: of SASRec (WIDTH).
    """
    torch.manual_seed(seed)
    rng, num_items = np.random.default_rng(seed), int(day["num_items"])
    config = SASRecConfig(d_model=width or WIDTH, blocks=2, heads=2, dropout=DROPOUT)
    model = (TwoTower(num_items) if kind == "two-tower" else SASRec(config, num_items)).to(device)
    optimizer = adam(model.parameters(), rate=RATE, weight_decay=0.01, decoupled=True, device=device)
    sequences = sequences_of(kind, day)
    data = Batches([s for s in sequences if len(s) > 1], num_items, device)
    targets = data.targets(BATCH)

    def step(rows_BT: Tensor) -> None:
        items_BT, next_BT = rows_BT[:, :-1], rows_BT[:, 1:]
        target_P = torch.where(items_BT < num_items, next_BT, IGNORED).flatten()
        with autocast(device):
            table_ND = model.table()
            state = model(items_BT, table_ND)[:, -items_BT.shape[1] :].flatten(0, 1)
            loss = sampled_softmax(state, target_P, table_ND[:-1], 0) / targets
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    run, curve, best = Steps(step, device), [], {}
    for epoch in range(1, epochs + 1):
        model.train()
        for rows_BT in data.epoch(BATCH, rng):
            run(rows_BT)
        if every and epoch % every == 0:
            curve.append((epoch, evaluate(rank(model.eval(), day, device, kind), day)["recall@50"]))
            if curve[-1][1] == max(recall for _, recall in curve):
                best = {k: v.detach().clone() for k, v in model.state_dict().items()}
    if best:
        model.load_state_dict(best)
    return model.eval(), curve


def evaluate(ranked_UK: np.ndarray, day: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the day's users of the table's columns."""
    values = ranking_metrics(ranked_UK, np.split(day["wanted"], day["wanted_ends"][:-1]))
    return {name: float(values[name].mean()) for name in COLUMNS}


def rank(
    model: SASRec | TwoTower,
    day: dict[str, np.ndarray],
    device: torch.device,
    kind: str = "",
    more_UN: np.ndarray | None = None,
) -> np.ndarray:
    """The first TOP items of each of the day's users [U, TOP]; what was seen before the day is left out (-1)."""
    return retrieve(model, day, device, TOP, kind, more_UN)[0]


@torch.no_grad()
def retrieve(
    model: SASRec | TwoTower,
    day: dict[str, np.ndarray],
    device: torch.device,
    places: int,
    kind: str = "",
    more_UN: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The first `places` items of each of the day's users [U, places], -1 where none is left, and log-probabilities.

    more_UN: a score of every item that is added to them.
    """
    num_items, rows = int(day["num_items"]), day["rows"]
    sequences = sequences_of(kind, day)
    seen = np.split(day["seen"], day["seen_ends"][:-1])
    table_ND, ranked, scores = model.table(), [], []
    for start in range(0, len(rows), 512):
        part = slice(start, start + 512)
        items_BT = torch.from_numpy(padded([sequences[u] for u in rows[part]], MAX_HISTORY, num_items)).to(device)
        logit_BN = F.linear(model(items_BT, table_ND)[:, -1].float(), table_ND[:-1].float())
        score = torch.log_softmax(logit_BN, -1).cpu().numpy()
        score = score if more_UN is None else score + more_UN[part]
        for line, out in zip(score, seen[part]):
            line[out] = -np.inf
        best = np.argsort(-score, axis=1, kind="stable")[:, :places]
        scores.append(np.take_along_axis(score, best, 1))
        ranked.append(np.where(scores[-1] == -np.inf, -1, best))
    return np.concatenate(ranked), np.concatenate(scores)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="folder of KuaiRand-Pure: prepare, train nothing")
    p.add_argument("--prepared", type=Path, required=True)
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--epochs", type=int, default=MOST_EPOCHS, help="most epochs while choosing")
    p.add_argument("--width", type=int, help=f"of SASRec, while choosing or with --exactly ({WIDTH})")
    p.add_argument("--choose-only", action="store_true", help="end when the passes are chosen")
    p.add_argument("--exactly", type=int, help="so many epochs, chosen before: nothing is chosen now")
    p.add_argument("--weight", type=float, default=12.0, help="of co-occurrence, with --exactly")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--lists", type=Path, default=Path("build/quality/kuairand_lists"))
    args = p.parse_args()
    if args.data:
        prepare(args.data, args.prepared)
        return
    device = torch.device(args.device)
    days = {key: dict(np.load(args.prepared / f"{day}.npz", allow_pickle=False).items()) for key, day in DAYS.items()}
    chosen_in = args.lists / "epochs.json"
    chosen = json.loads(chosen_in.read_text()) if chosen_in.exists() else {}
    shown = {key: shown_scores(day) for key, day in days.items()} if args.models != ["two-tower"] else {}
    for kind in args.models:
        begun = time.monotonic()
        if args.exactly is not None:
            chosen[kind] = {"epochs": args.exactly, "curve": [], "weight": args.weight, "width": args.width}
        elif kind not in chosen:
            settings = {"epochs": args.epochs, "seed": args.seeds[0], "every": 4, "width": args.width}
            model, curve = train(kind, days["choose"], device=device, **settings)
            chosen[kind] = {"epochs": max(curve, key=lambda point: point[1])[0], "curve": curve, "width": args.width}
            if shown:
                lists_of = {w: rank(model, days["choose"], device, kind, w * shown["choose"]) for w in WEIGHTS}
                recall = {w: evaluate(found, days["choose"])["recall@50"] for w, found in lists_of.items()}
                chosen[kind] |= {"weight": max(recall, key=recall.__getitem__), "tried": recall}
            args.lists.mkdir(parents=True, exist_ok=True)
            chosen_in.write_text(json.dumps(chosen, indent=1) + "\n")
            print(f"{time.monotonic() - begun:6.1f} s  {kind}: {json.dumps(chosen[kind])}", flush=True)
        if args.choose_only:
            continue
        rows = {kind: None} | ({} if kind == "two-tower" else {kind + CO_OCCURRENCE: chosen[kind]["weight"]})
        for seed in args.seeds:
            if all(lists.path(args.lists, row, seed).exists() for row in rows):
                continue
            settings = {"epochs": chosen[kind]["epochs"], "seed": seed, "width": chosen[kind].get("width")}
            model, _ = train(kind, days["test"], device=device, **settings)
            for row, weight in rows.items():
                ranked = rank(model, days["test"], device, kind, weight * shown["test"] if weight else None)
                found = evaluate(ranked, days["test"])
                print(f"{time.monotonic() - begun:6.1f} s  {row}, seed {seed}: {json.dumps(found)}", flush=True)
                about = {"device": hardware(args.device), "commit": commit(), **chosen[kind]}
                ids = np.where(ranked >= 0, days["test"]["item_id"][ranked], -1)
                user_id = days["test"]["user_id"]
                lists.save(args.lists, lists.Lists(model=row, seed=seed, user_id=user_id, ranked=ids, about=about))


if __name__ == "__main__":
    main()
