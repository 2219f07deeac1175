"""Alignment: RSFT and a policy objective in one loop, with format reward and industrial rules (TR sections 2.4, 3.3).

RSFT keeps the half of the sessions with the longer play time and goes on with next-token prediction. The policy
objective (ECPO by default) takes a share of RSFT's users: a rollout worker generates a group of items for each, the
rewards score them and the better are preferred. The format reward samples freely and rewards legal tuples. A probe on
users that none of this ever sees is measured before, meanwhile and after: alignment that hurts stops, and the
pre-trained model is kept.

    align(training_sets=[day], tokenizer=..., model=pretrained, reward=..., out=..., seed=7)
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.evaluation.floors import popularity
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.reward.industrial import IndustrialReward, Rule, Traits
from models.reward.reward import RewardSetup, build_rewards
from models.training.align_config import AlignConfig
from models.training.checkpoint import Tokenizer, load_model, save_model
from models.training.data import TrainingSet
from models.training.losses import item_loss, ntp_loss
from models.training.optimizer import learning_rate
from models.training.preference import Preference
from models.training.rollout import RolloutWorker, Worker
from models.training.rollout_process import ProcessWorker
from models.training.safety import Probe, Watch, harm
from models.training.sessions import session_batches, split_sessions, user_turns

DEFAULTS = AlignConfig()
EXPOSED = 10  # items of a list that a user is taken to see, for the exposure of industrial rules


def align(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    model: Path,
    reward: Path,
    out: Path,
    seed: int,
    progress: Callable[[str], None] = print,
    config: AlignConfig = DEFAULTS,
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
    held, sessions, users = split_sessions(data, config, rng)
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
    batches = session_batches(data, sessions, config, seed)
    turns = user_turns(data, users, config.users_per_step)
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
