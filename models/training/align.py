"""Alignment: RSFT and a policy objective in one loop, with format reward and industrial rules (TR sections 2.4, 3.3).

RSFT keeps the half of the sessions with the longer play time and goes on with next-token prediction. The policy
objective (ECPO by default) takes a share of RSFT's users: a rollout worker generates a group of items for each, the
rewards score them and the better are preferred. The format reward samples freely and rewards legal tuples. A probe on
users that none of this ever sees is measured before, meanwhile and after: alignment that hurts stops, and the
pre-trained model is kept.

    align(training_sets=[day], tokenizer=..., model=pretrained, reward=..., out=..., seed=7)
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.evaluation.floors import popularity
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.reward.industrial import IndustrialReward, Rule, Traits
from models.reward.reward import RewardSetup, build_rewards
from models.training.checkpoint import Tokenizer, load_model, save_model
from models.training.data import TrainingSet
from models.training.losses import item_loss, ntp_loss
from models.training.objectives import ObjectiveConfig
from models.training.optimizer import learning_rate
from models.training.preference import Preference, PreferenceConfig
from models.training.rollout import RolloutConfig, RolloutWorker, Worker
from models.training.rollout_process import ProcessWorker
from models.training.safety import Probe, Watch, harm

EXPOSED = 10  # items of a list that a user is taken to see, for the exposure of industrial rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Published: half of the sessions dropped, 1 % of its users. Half the published learning rates, as batches are
    small; this and the rest: docs/decisions.md."""

    lr_sparse: float = 5e-5
    lr_dense: float = 4e-5
    warmup_share: float = 0.05  # then annealed to a tenth, as in pre-training
    clip_norm: float = 1.0
    batch_size: int = 32
    min_steps: int = 120  # at bootstrap: a small day is passed over several times,
    max_passes: int = 10  # but a tiny one not for ever
    max_steps: int = 400
    rsft_weight: float = 1.0
    item_loss_weight: float = 1.0
    user_share: float = 0.01
    min_users: int = 1024
    users_per_step: int = 16
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    rollout_process: bool = False  # the worker in a process of its own, one step ahead of the trainer
    sync_every: int = 4  # steps between pushes to the rollout worker; 0: never, the pre-trained model generates
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
    rewards: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"p_score": 1.0})
    rules: tuple[Rule, ...] = ()
    exposure_window: int = 5000
    probe_users: int = 1024
    probe_k: int = 50
    check_every: int = 60  # steps between looks at the probe; 0: only before and after
    allowed_recall_loss: float = 0.05  # relative; beyond it the pre-trained model is kept


def align_later_day() -> AlignConfig:
    """For a day whose model was aligned the day before: one pass over its sessions (docs/decisions.md)."""
    return AlignConfig(min_steps=1)


def align(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    model: Path,
    reward: Path,
    out: Path,
    seed: int,
    progress: Callable[[str], None] = print,
    config: AlignConfig = AlignConfig(),
    items: Path | None = None,
    device: str = "cpu",
    each_step: Callable[[OneRec, dict[str, Any]], None] = lambda policy, point: None,
) -> dict:
    """Align the model of directory `model`; `training_sets` is the newest day. Returns the curves and the decision.

    `items` is the catalogue's table, which industrial rules read. `each_step` sees the policy and the curve's point,
    with its times in seconds, after every step. Writes model.safetensors, config.json, optimizer.safetensors and
    metrics.json. Raises ValueError when fewer than two rows hold a positive and for a wrong configuration.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tok = Tokenizer.load(tokenizer)
    policy = load_model(model, tok).to(device)
    reference = load_model(model, tok).to(device).eval() if config.objective.kl_beta else None
    base = build_rewards(config.rewards, RewardSetup(reward=reward, tokenizer=tok, device=device))
    data = TrainingSet(training_sets, tok.catalogue, policy.config)
    marked = _marked(config.rules, items, training_sets, data)
    rewarded = IndustrialReward(base, config.rules, marked, config.exposure_window)
    held, sessions, users = _split(data, config, rng)
    trie = tok.trie.to(device)
    probe = Probe(data=data, rows=held, reward=base, trie=trie, k=config.probe_k, seed=seed, device=device)
    lists = config.rollout.session_items
    prefer = Preference(config.preference, config.objective, rewarded, reference, seed, device, lists)
    worker: Worker = (
        ProcessWorker(model=model, tokenizer=tokenizer, config=config.rollout, seed=seed, device=device)
        if config.rollout_process
        else RolloutWorker(load_model(model, tok).to(device), tok, config.rollout, seed)
    )
    optimizer = _optimizer(policy, config)

    before = probe.measure(policy)
    rewarded.observe(before.top_items)
    curve: list[dict[str, Any]] = []
    watch, hurt, said = Watch(), None, time.monotonic()
    batches, turns = _batches(data, sessions, config, seed), _turns(data, users, config.users_per_step)
    context = next(turns)
    ticket = worker.request(context)
    for step, rows in enumerate(batches):
        begun = time.monotonic()
        if config.sync_every and step % config.sync_every == 0:
            worker.push(policy.state_dict(), step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate(step, len(batches), config.warmup_share)
        rollout, used = worker.collect(ticket, step), context
        if rollout.item_BG.is_cuda:
            torch.cuda.synchronize()  # what was generated counts as the rollout's time, not as the update's
        waited, context = time.monotonic() - begun, next(turns)
        ticket = worker.request(context)  # before this step's update: a worker of its own generates meanwhile
        policy.train()
        batch = {k: v.to(device) for k, v in data.batch(rows, 8).items()}
        z, mask = policy.encode(batch)
        weight = batch["target_mask"].float()
        rsft = ntp_loss(policy, batch["targets"], weight, z, mask)[0]
        rsft = rsft + config.item_loss_weight * item_loss(policy, batch["targets"], weight, z)
        preferred, stats = prefer.loss(policy, used, rollout)
        optimizer.zero_grad(set_to_none=True)
        (config.rsft_weight * rsft + preferred).backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.clip_norm).item()
        if not np.isfinite(norm):
            hurt = f"the gradient norm is {norm} at step {step + 1}"
            break
        optimizer.step()
        for module in policy.modules():
            if isinstance(module, MoE):
                module.balance()
        rewarded.observe(rollout.shown(EXPOSED))
        spike = watch.step(norm, stats["ratio_max"], stats["entropy"])
        curve.append({"step": step + 1, **stats, "rsft_loss": rsft.item(), "grad_norm": norm, "spike": spike})
        seconds = {"rollout_seconds": waited, "seconds": time.monotonic() - begun}
        each_step(policy, curve[-1] | seconds)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            progress(f"step {step + 1}/{len(batches)}  reward {stats['reward']:.4f}  legal {stats['legality']:.3f}")
        if config.check_every and (step + 1) % config.check_every == 0 and step + 1 < len(batches):
            hurt = harm(before, probe.measure(policy), config.allowed_recall_loss)
            if hurt:
                hurt = f"stopped at step {step + 1} of {len(batches)}: {hurt}"
                break
    worker.close()
    after = probe.measure(policy)
    hurt = hurt or harm(before, after, config.allowed_recall_loss)
    if hurt:
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(model / name, out / name)
    else:
        save_model(policy, out)
    shutil.copyfile(model / "optimizer.safetensors", out / "optimizer.safetensors")
    metrics = {
        "curve": curve,
        **{f"{k}_before": v for k, v in before.numbers().items()},
        **{f"{k}_after": v for k, v in after.numbers().items()},
        "kept": "pretrained" if hurt else "aligned",
        "reason": f"{hurt}; the pre-trained model is kept" if hurt else _kept(before, after, config),
        "users": len(users),
        "sessions": len(sessions),
        "steps": len(curve),
        "objective": config.objective.name,
        "on_policy_share": float(np.mean([p["on_policy"] for p in curve])) if curve else 0.0,
        "staleness_mean": float(np.mean([p["staleness"] for p in curve])) if curve else 0.0,
        **watch.summary(),
        "industrial": {
            rule.name: {
                "target": rule.share,
                "before": _share(mark, before.top_items),
                "after": _share(mark, after.top_items),
            }
            for rule, mark in zip(config.rules, marked)
        },
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def _split(data: TrainingSet, config: AlignConfig, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Rows of the probe, of RSFT's sessions, and those of RSFT's users who take part in the policy objective."""
    with_targets = rng.permutation(np.flatnonzero(data.targets.lengths > 0))
    if len(with_targets) < 2:
        raise ValueError(
            f"{len(with_targets)} rows with a positive (long_view, like, follow, forward) in the newest day: alignment "
            "needs one to train on and one to measure; align a day with more impressions"
        )
    held = with_targets[: min(config.probe_users, max(1, len(with_targets) // 4))]
    sessions = _longer_half(data, with_targets[len(held) :])
    users = rng.permutation(sessions)[: max(round(config.user_share * len(sessions)), config.min_users)]
    return held, sessions, users


def _longer_half(data: TrainingSet, rows: np.ndarray) -> np.ndarray:
    """RSFT's filter: the half of the sessions with the longer play time (unknown play time counts as none)."""
    row = np.repeat(np.arange(len(data)), data.shown.lengths)
    play = np.bincount(row, np.maximum(data.shown.values[:, 3], 0), minlength=len(data))
    order = rows[np.argsort(play[rows], kind="stable")]
    return order[len(order) // 2 :]


def _batches(data: TrainingSet, sessions: np.ndarray, config: AlignConfig, seed: int) -> list[np.ndarray]:
    """Sessions in seeded passes until `min_steps` batches are there, at most `max_passes` and `max_steps`."""
    out: list[np.ndarray] = []
    passes = 0
    while not out or (len(out) < config.min_steps and passes < config.max_passes):
        out += data.batches(sessions, config.batch_size, seed + passes)
        passes += 1
        if passes > 1 and len(out) >= config.min_steps:
            out = out[: config.min_steps]
    return out[: config.max_steps]


def _turns(data: TrainingSet, users: np.ndarray, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Contexts of `count` users at a time, round and round, and what each has seen: [B, S], padded with -1."""
    at, longest = np.arange(count), int(data.seen.lengths.max(initial=0))
    while True:
        rows = users[at % len(users)]
        seen, real = data.seen.right_aligned(rows, longest)
        known = np.where(real, data.catalogue.index(seen), -1)
        yield data.context(rows) | {"seen": torch.from_numpy(known)}
        at = (at + count) % len(users)


def _optimizer(policy: OneRec, config: AlignConfig) -> torch.optim.AdamW:
    """AdamW with one learning rate for embedding tables and one for the rest, without weight decay."""
    sparse = {id(m.weight) for m in policy.modules() if isinstance(m, torch.nn.Embedding)}
    groups = [
        {"params": [p for p in policy.parameters() if id(p) in sparse], "base_lr": config.lr_sparse},
        {"params": [p for p in policy.parameters() if id(p) not in sparse], "base_lr": config.lr_dense},
    ]
    return torch.optim.AdamW(groups, lr=config.lr_dense, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def _marked(
    rules: tuple[Rule, ...], items: Path | None, training_sets: list[Path], data: TrainingSet
) -> list[np.ndarray]:
    """The items that each rule marks, [N] bool each."""
    if not rules:
        return []
    if items is None:
        raise ValueError(f"{len(rules)} industrial rules but no items table; give the day's `items` partition")
    traits = Traits.read(items, data.catalogue, popularity(training_sets)[0])
    return [traits.marked(rule, int(data.now_s.max())) for rule in rules]


def _share(marked_N: np.ndarray, items: torch.Tensor) -> float:
    """Share of marked items among those that are items."""
    shown = items[items >= 0].numpy()
    return float(marked_N[shown].mean()) if len(shown) else 0.0


def _kept(before, after, config: AlignConfig) -> str:
    limit = before.recall_probe * (1 - config.allowed_recall_loss)
    return (
        f"held-out recall {before.recall_probe:.4f} -> {after.recall_probe:.4f}, limit {limit:.4f}; reward "
        f"{before.reward:.4f} -> {after.reward:.4f}"
    )
