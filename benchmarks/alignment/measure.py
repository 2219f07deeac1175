"""Align with some settings on a prepared folder, and measure a model on its evaluation set.

Recall follows the evaluation step's protocol: positives of the next day that the user had not seen, seen items
excluded, exact items. P-Score is that of the folder's reward model.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.onerec.beam_search import beam_search, sample_codes
from models.onerec.features import POSITIVE_MASK
from models.onerec.model import OneRec
from models.onerec.ranking import rank_unseen
from models.reward.pscore import PScore
from models.training.align import align
from models.training.align_config import AlignConfig
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import TrainingSet
from models.training.objectives import ObjectiveConfig
from models.training.preference import PreferenceConfig
from models.training.rollout import RolloutConfig

CHUNK, TOP, RECALL, PASS = 128, 10, 50, (8, 64, 512)
# Changes to the daily default. Sixty steps at the published rates with twice the users teach as much as its 120; policy
# weights at which the objectives differ (docs/decisions/alignment.md).
SHORT: dict[str, Any] = {"users_per_step": 32, "rollout.free_samples": 8, "lr_dense": 8e-5, "lr_sparse": 1e-4}
STRONG = SHORT | {"preference.policy_weight": 3.0, "preference.item_policy_weight": 1.0}
NO_POLICY = {"preference.policy_weight": 0.0, "preference.item_policy_weight": 0.0}
# Nothing is learned from rollouts, so as few are made as can be.
RSFT_ONLY = SHORT | NO_POLICY | {"preference.format_weight": 0.0, "users_per_step": 1, "rollout.group_size": 2}
# Variants of more than one benchmark.
COMMON: dict[str, dict[str, Any] | None] = {
    "pretrained": None,
    "rsft only": RSFT_ONLY,
    "ecpo, daily weights": SHORT,
}
PARTS: dict[str, type] = {"rollout": RolloutConfig, "objective": ObjectiveConfig, "preference": PreferenceConfig}


def configure(changes: dict[str, Any], steps: int) -> AlignConfig:
    """The daily default with changes; "rollout.group_size" names a part's field. Nothing is thrown away or stopped.

    The evaluation set measures, so the loop's own probe is small, and the users it spares take part.
    """
    config = AlignConfig(min_steps=steps, max_steps=steps, allowed_recall_loss=1.0, check_every=0, probe_users=128)
    for name, value in changes.items():
        part, _, field = name.partition(".")
        new = dataclasses.replace(getattr(config, part), **{field: value}) if field else value
        config = dataclasses.replace(config, **{part: new})
    return config


def aligned(
    args: argparse.Namespace,
    seed: int,
    changes: dict[str, Any],
    each_step: Callable[[OneRec, dict[str, Any]], None] = lambda policy, point: None,
) -> tuple[OneRec, dict[str, Any]]:
    """The aligned model and the loop's metrics, with `align_seconds`, and `cpu_seconds` for a shared machine."""
    p = args.prepared
    with tempfile.TemporaryDirectory() as folder:
        begun, cpu = time.monotonic(), time.process_time()
        metrics = align(
            training_sets=[p / "training.parquet"],
            tokenizer=p / "tokenizer",
            model=p / "model",
            reward=p / "reward",
            items=p / "items.parquet",
            out=Path(folder),
            seed=seed,
            progress=lambda line: None,
            config=configure(changes, args.steps),
            device=args.device,
            each_step=each_step,
        )
        seconds = {"align_seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - cpu}
        model = load_model(Path(folder), Tokenizer.load(p / "tokenizer")).to(args.device).eval()
    return model, metrics | seconds


def loop_numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """What the loop saw of gradients and ratios."""
    curve = metrics["curve"]
    return {
        k: metrics[k]
        for k in ("grad_norm_max", "grad_spikes", "ratio_max", "align_seconds", "cpu_seconds", "on_policy_share")
    } | {
        "clipped": float(np.mean([p["clipped"] for p in curve])),
        "rollout_reward_first": float(np.mean([p["reward"] for p in curve[: max(1, len(curve) // 5)]])),
        "rollout_reward_last": float(np.mean([p["reward"] for p in curve[-max(1, len(curve) // 5) :]])),
    }


def evaluation_of(args: argparse.Namespace) -> Evaluation:
    """The evaluation set of these arguments, read once a process."""
    return _evaluation(args.prepared, args.device, args.users)


@functools.cache
def _evaluation(prepared: Path, device: str, users: int) -> Evaluation:
    return Evaluation(argparse.Namespace(prepared=prepared, device=device, users=users))


class Evaluation:
    """The evaluation rows of a prepared folder, `users` of them (the same for every seed and variant)."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, p = args.device, args.prepared
        self.tok = Tokenizer.load(p / "tokenizer")
        self.trie = self.tok.trie.to(self.device)
        self.pretrained = load_model(p / "model", self.tok).to(self.device).eval()
        self.p_score = PScore.load(p / "reward", self.tok).to(self.device).eval()
        self.data = TrainingSet([p / "evaluation.parquet"], self.tok.catalogue, self.pretrained.config)
        self.rows, self.relevant = self._protocol()
        chosen = np.random.default_rng(0).permutation(len(self.rows))[: args.users]
        self.rows, self.relevant = self.rows[chosen], [self.relevant[i] for i in chosen]

    def _protocol(self) -> tuple[np.ndarray, list[np.ndarray]]:
        rows, relevant = [], []
        for i in range(len(self.data)):
            shown = self.data.shown.row(i)
            ids = self.data.shown_item_id.row(i)[(shown[:, 1] & POSITIVE_MASK) > 0]
            wanted = np.setdiff1d(ids, self.data.seen.row(i))
            if len(wanted):
                rows.append(i)
                relevant.append(wanted)
        return np.array(rows), relevant

    def contexts(self, rows: np.ndarray | None = None):
        """Chunks of rows with their context on the device."""
        rows = self.rows if rows is None else rows
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            yield part, {k: v.to(self.device) for k, v in self.data.context(part).items()}

    def top(self, model: OneRec, k: int = RECALL, beam: int = 128) -> np.ndarray:
        """Unseen items of each row, catalogue indices [U, k], -1 where there are fewer."""
        out, at = np.full((len(self.rows), k), -1), 0
        for part, context in self.contexts():
            seen = [self.tok.catalogue.index(self.data.seen.row(i)) for i in part]
            for item, _, _ in rank_unseen(model, context, self.trie, seen, k, beam):
                out[at, : len(item)] = item
                at += 1
        return out

    @functools.cached_property
    def top_before(self) -> np.ndarray:
        """`top` of the pre-trained model."""
        return self.top(self.pretrained)

    def recall(self, top: np.ndarray) -> np.ndarray:
        """Recall of each row."""
        ids = np.append(self.tok.catalogue.item_ids, -1)
        return np.array([np.isin(r, ids[items]).mean() for r, items in zip(self.relevant, top)])

    def score(self, top: np.ndarray) -> np.ndarray:
        """P-Score of the items, [U, n], nan where there is none."""
        out, at = np.full(top.shape, np.nan), 0
        for part, context in self.contexts():
            items = torch.from_numpy(top[at : at + len(part)]).to(self.device)
            value = torch.where(items >= 0, self.p_score.score(context, items.clamp_min(0)), torch.nan)
            out[at : at + len(part)] = value.cpu().numpy()
            at += len(part)
        return out

    @torch.no_grad()
    def passes(self, model: OneRec, widths: tuple[int, ...] = PASS) -> dict[str, float]:
        """pass@K P-Score: the best and the mean of the K items that a beam of width K generates."""
        found: dict[str, list[Tensor]] = {}
        for _, context in self.contexts():
            z, mask = model.encode(context)
            for width in widths:
                codes, logp = beam_search(model, z, mask, min(width, len(self.trie.item)), self.trie)
                value = self.p_score.score(context, self.trie.lookup(codes).clamp_min(0))
                value = torch.where(torch.isfinite(logp), value, torch.nan)
                found.setdefault(f"pass@{width}", []).append(value.nan_to_num(-1.0).amax(1))
                found.setdefault(f"mean@{width}", []).append(value.nanmean(1))
        return {name: torch.cat(values).mean().item() for name, values in found.items()}

    @torch.no_grad()
    def legality(self, model: OneRec, seed: int, samples: int = 8, users: int = 512) -> float:
        """Legal share of free samples."""
        generator, legal = torch.Generator(self.device).manual_seed(seed), []
        for _, context in self.contexts(self.rows[:users]):
            z, mask = model.encode(context)
            codes = sample_codes(model, z, mask, samples, generator)
            legal.append((self.trie.lookup(codes) >= 0).float().mean(1))
        return torch.cat(legal).mean().item()

    def numbers(self, model: OneRec, seed: int, passes: bool = True, top: np.ndarray | None = None) -> dict[str, float]:
        """All of it; recall also as the paired difference to the pre-trained model, with its half-width over users.

        `top`: what `self.top(model)` gave, if it is known.
        """
        top = self.top(model) if top is None else top
        recall = self.recall(top)
        gap = recall - self.recall(self.top_before)
        return {
            "p_score": float(np.nanmean(self.score(top[:, :TOP]))),
            "recall": float(recall.mean()),
            "recall_change": float(gap.mean()),
            "recall_change_users": float(1.96 * gap.std() / len(gap) ** 0.5),
            "legality": self.legality(model, seed),
            **(self.passes(model) if passes else {}),
        }
