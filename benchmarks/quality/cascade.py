"""The cascade on KuaiRand-Pure: two-tower retrieval, then DIN + SIM ranking; quality as lists, for the table.

    python -m benchmarks.quality.cascade --trained build/quality/kuairand --prepared build/quality/kuairand_onerec

Retrieval is the two-tower model of `kuairand_trained` (`--trained`: its folder). The ranker learns, from every
impression before the day whose label is known, whether it becomes a positive (`--prepared`: `kuairand_onerec`'s folder,
so it reads what OneRec reads); items that were not shown may join as negatives. Of two stages three orders are made:
the ranker's alone, and the ranker's log-probability times a weight plus the retrieval's. Epochs of both, number of
candidates, sampled negatives and the weight are chosen on 2022-05-05 (recall@50) by models of the days before, one
seed; then three seeds train up to 2022-05-05. Latency, memory and cost: `cascade_cost.py`.

Legend: B users, M candidates, N items.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.machine import commit, hardware
from benchmarks.quality import lists
from benchmarks.quality.din import Ranker, RankerConfig, about_items
from benchmarks.quality.kuairand_prepare import LAST
from benchmarks.quality.kuairand_trained import DAYS, MOST_EPOCHS, evaluate, rank, retrieve
from benchmarks.quality.kuairand_trained import train as train_retrieval
from benchmarks.quality.lists import TOP
from benchmarks.quality.protocol import autocast
from benchmarks.quality.recipes import CHOOSE, up_to
from models.evaluation.evaluate import held_out
from models.onerec.config import onerec_laptop
from models.onerec.features import POSITIVE_MASK
from models.training.checkpoint import Tokenizer
from models.training.data import PATHWAYS, TrainingSet
from models.training.pretrain import static_features

BATCH, RATE, SHOWN, CHUNK = 128, 1e-3, 12, 128
CANDIDATES, NEGATIVES, EPOCHS = (100, 200, 500), (0, 12), (1, 2, 3)
WEIGHTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, float("inf"))  # of the ranker's score beside the retrieval's; inf: alone
ROWS = {"alone": "two-tower, then DIN + SIM", "joint": "two-tower + DIN + SIM, joint score"}


def rows_of(paths: list[Path], prepared: Path, seed: int) -> TrainingSet:
    """Rows of some days, encoded for a seed's catalogue."""
    tok = Tokenizer.load(prepared / "tokenizer" / f"once_{seed}")
    static = static_features(paths[0])
    config = onerec_laptop(codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static)
    return TrainingSet(paths, tok.catalogue, config)


def train_ranker(
    data: TrainingSet, *, negatives: int, epochs: int, seed: int, device: torch.device
) -> Iterator[Ranker]:
    """The ranker after each of `epochs`, fitted to the rows' impressions and `negatives` drawn items a row.

    A drawn item counts as not liked; items are drawn by their number of impressions to the power of 0.75.
    """
    torch.manual_seed(seed)
    rng, items = np.random.default_rng(seed), len(data.catalogue)
    about = about_items([torch.from_numpy(data.pathway[name].values) for name in PATHWAYS], items)
    model = Ranker(RankerConfig(items=items, static_features=data.static.shape[1]), about).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=device.type == "cuda")
    shown = data.shown.values[:, 0]
    often = np.bincount(shown[shown < items], minlength=items) ** 0.75
    cumulative = np.cumsum(often) / often.sum()
    rows = np.flatnonzero(data.shown.lengths)
    steps, step = epochs * -(-len(rows) // BATCH), 0
    for _ in range(epochs):
        model.train()
        for part in data.batches(rows, BATCH, int(rng.integers(2**31))):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - 0.9 * step / steps)
            context = {k: v.to(device) for k, v in data.context(part).items()}
            seen, mask = data.shown.right_aligned(part, SHOWN)
            drawn = np.searchsorted(cumulative, rng.random((len(part), negatives))).clip(max=items - 1)
            item = torch.from_numpy(np.concatenate([seen[..., 0], drawn], 1)).to(device)
            liked = torch.from_numpy((seen[..., 1] & POSITIVE_MASK) > 0)
            known = torch.from_numpy(mask & ((seen[..., 2] & POSITIVE_MASK) > 0))
            target = F.pad(liked, (0, negatives)).float().to(device)
            counts = F.pad(known, (0, negatives), value=True).float().to(device)
            with autocast(device):
                logit = model(context, item)
            loss = F.binary_cross_entropy_with_logits(logit.float(), target, weight=counts, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            (loss / counts.sum().clamp_min(1)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        yield model.eval()


@torch.no_grad()
def scores(model: Ranker, data: TrainingSet, rows: np.ndarray, item_UM: np.ndarray, device: torch.device) -> np.ndarray:
    """The ranker's log-probabilities [U, M] of catalogue indices; -inf where there is no candidate (-1)."""
    out = np.full(item_UM.shape, -np.inf, np.float32)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        context = {k: v.to(device) for k, v in data.context(rows[part]).items()}
        item = torch.from_numpy(item_UM[part]).to(device)
        logp = F.logsigmoid(model(context, item.clamp_min(0)).float())
        out[part] = logp.masked_fill(item < 0, float("-inf")).cpu().numpy()
    return out


def joined(item_UM: np.ndarray, retrieval_UM: np.ndarray, ranker_UM: np.ndarray, weight: float) -> np.ndarray:
    """The first TOP candidates [U, TOP] by retrieval + weight x ranker (inf: ranker alone); -1 where there is none."""
    score = ranker_UM if weight == float("inf") else retrieval_UM + weight * ranker_UM
    score = np.where(item_UM >= 0, score, -np.inf)
    best = np.argsort(-score, axis=1, kind="stable")[:, :TOP]
    return np.take_along_axis(item_UM, best, 1)


class Stages:
    """Both stages for the users of a day: retrieval's candidates once, then the ranker as often as asked."""

    def __init__(self, retrieval, day: dict[str, np.ndarray], prepared: Path, of: str, seed: int, device) -> None:
        self.day, self.device = day, device
        rows_file = prepared / "evaluation" / f"dt={of}.parquet"
        self.data = rows_of([rows_file], prepared, seed)
        rows, _, _ = held_out(rows_file)
        order = dict(zip(self.data.user_id[rows].tolist(), rows.tolist()))
        row = np.array([order.get(user, -1) for user in day["user_id"].tolist()])
        self.rows = np.maximum(row, 0)
        self.index, self.score = retrieve(retrieval, day, device, max(CANDIDATES))
        ids = np.where(self.index >= 0, day["item_id"][self.index], -1)
        self.item = np.where(ids >= 0, self.data.catalogue.index(ids.ravel()).reshape(ids.shape), -1)
        self.item[self.item == len(self.data.catalogue)] = -1
        self.item[row < 0] = -1  # the few users without a row of features get nothing, as from OneRec

    def ranker(self, model: Ranker) -> np.ndarray:
        return scores(model, self.data, self.rows, self.item, self.device)

    def ranked(self, ranker_UM: np.ndarray, candidates: int, weight: float) -> np.ndarray:
        """Indices into the day's items [U, TOP]."""
        k = slice(None, candidates)
        index = np.where(self.item >= 0, self.index, -1)
        return joined(index[:, k], self.score[:, k], ranker_UM[:, k], weight)

    def recall(self, ranker_UM: np.ndarray, candidates: int, weight: float) -> float:
        return evaluate(self.ranked(ranker_UM, candidates, weight), self.day)["recall@50"]


def choose(args: argparse.Namespace, day: dict[str, np.ndarray], device: torch.device) -> dict:
    """Everything that is chosen, by recall@50 of 2022-05-05, and what was tried."""
    seed = args.seeds[0]
    retrieval, curve = train_retrieval(
        "two-tower", day, epochs=args.retrieval_epochs, seed=seed, device=device, every=4
    )
    best = max(curve, key=lambda point: point[1])[0]
    stages = Stages(retrieval, day, args.prepared, CHOOSE, seed, device)
    data = rows_of(up_to(args.prepared, CHOOSE), args.prepared, seed)
    tried = []
    for negatives in NEGATIVES:
        models = train_ranker(data, negatives=negatives, epochs=max(EPOCHS), seed=seed, device=device)
        for epoch, model in enumerate(models, 1):
            found = stages.ranker(model)
            for candidates in CANDIDATES:
                for weight in WEIGHTS:
                    point = {"negatives": negatives, "epochs": epoch, "candidates": candidates, "weight": weight}
                    tried.append(point | {"recall@50": stages.recall(found, candidates, weight)})
            print(f"negatives {negatives}, epoch {epoch}: {max(tried[-21:], key=lambda t: t['recall@50'])}", flush=True)
    alone = max((t for t in tried if t["weight"] == float("inf")), key=lambda t: t["recall@50"])
    joint = max((t for t in tried if t["weight"] < float("inf")), key=lambda t: t["recall@50"])
    only = evaluate(rank(retrieval, day, device), day)["recall@50"]
    print(json.dumps({"retrieval": [best, only], "alone": alone, "joint": joint}), flush=True)
    return {"retrieval_epochs": best, "retrieval_recall@50": only, "alone": alone, "joint": joint, "tried": len(tried)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trained", type=Path, required=True, help="folder prepared by kuairand_trained")
    p.add_argument("--prepared", type=Path, required=True, help="folder prepared by kuairand_onerec")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--retrieval-epochs", type=int, default=MOST_EPOCHS, help="most epochs of the retrieval")
    p.add_argument("--chosen", type=Path, help="file of what was chosen: read if it is there, else written")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--lists", type=Path, default=Path("build/quality/kuairand_lists"))
    args = p.parse_args()
    device = torch.device(args.device)
    days = {key: dict(np.load(args.trained / f"{day}.npz", allow_pickle=False).items()) for key, day in DAYS.items()}
    if args.chosen and args.chosen.exists():
        chosen = json.loads(args.chosen.read_text())
    else:
        chosen = choose(args, days["choose"], device)
        if args.chosen:
            args.chosen.write_text(json.dumps(chosen, indent=1) + "\n")
    data = rows_of(up_to(args.prepared, LAST), args.prepared, args.seeds[0])
    for seed in args.seeds:
        begun = time.monotonic()
        retrieval, _ = train_retrieval(
            "two-tower", days["test"], epochs=chosen["retrieval_epochs"], seed=seed, device=device
        )
        stages = Stages(retrieval, days["test"], args.prepared, LAST, args.seeds[0], device)
        epochs = {"epochs": chosen["retrieval_epochs"]}
        keep(args, days["test"], "two-tower", seed, stages.index[:, :TOP], epochs, begun)
        made: dict[tuple[int, int], np.ndarray] = {}
        for kind, title in ROWS.items():
            of = chosen[kind]
            if (of["negatives"], of["epochs"]) not in made:
                # The learning rate's fall knows the number of epochs it was chosen with.
                models = train_ranker(data, negatives=of["negatives"], epochs=max(EPOCHS), seed=seed, device=device)
                for epoch, model in enumerate(models, 1):
                    made[of["negatives"], epoch] = stages.ranker(model)
            found = made[of["negatives"], of["epochs"]]
            ranked = stages.ranked(found, of["candidates"], of["weight"])
            about = {"candidates": of["candidates"], "chosen": str(chosen)}
            keep(args, days["test"], title, seed, ranked, about, begun)


def keep(
    args: argparse.Namespace,
    day: dict[str, np.ndarray],
    title: str,
    seed: int,
    ranked: np.ndarray,
    about: dict,
    begun: float,
) -> None:
    """Write the lists of a row; `ranked` are indices into the day's items."""
    about |= {"device": hardware(args.device), "commit": commit(), "seconds": round(time.monotonic() - begun, 1)}
    ids = np.where(ranked >= 0, day["item_id"][ranked], -1)
    made = lists.Lists(model=title, seed=seed, user_id=day["user_id"], ranked=ids, about=about)
    lists.save(args.lists, made)
    print(f"{about['seconds']} s  {title}, seed {seed}: {json.dumps(evaluate(ranked, day))}", flush=True)


if __name__ == "__main__":
    main()
