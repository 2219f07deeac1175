"""Alignment: RSFT and ECPO in one loop, with the format reward (TR sections 2.4, 3.3), from the pre-trained model.

RSFT keeps the half of the sessions with the longer play time and goes on with next-token prediction. ECPO takes a share
of RSFT's users, rolls out a group of items a user by beam search from the current policy, scores them by P-Score and
prefers the better. The format reward samples freely and rewards legal tuples. A recall probe on users that neither ever
sees decides at the end: alignment that hurts is thrown away and the pre-trained model is kept.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.onerec.beam_search import beam_search, sample_codes
from models.onerec.model import OneRec
from models.onerec.moe import MoE
from models.onerec.ranking import rank_items
from models.reward.pscore import PScore
from models.training.checkpoint import Tokenizer, load_model, save_model
from models.training.data import TrainingSet
from models.training.ecpo import ecpo_objective, format_advantage, group_advantage
from models.training.losses import item_loss, ntp_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Published: learning rates, half dropped, 1 % of RSFT's users, K=5 format samples. The rest: docs/decisions.md."""

    lr_sparse: float = 1e-4
    lr_dense: float = 8e-5
    batch_size: int = 128
    max_steps: int = 60
    user_share: float = 0.01
    min_users: int = 256
    users_per_step: int = 16
    group_size: int = 32
    format_samples: int = 32
    format_k: int = 5
    sync_every: int = 4
    ecpo_weight: float = 0.1
    format_weight: float = 0.1
    item_loss_weight: float = 1.0
    clip_norm: float = 1.0
    probe_users: int = 512
    probe_k: int = 50
    allowed_recall_loss: float = 0.03  # relative; beyond it the pre-trained model is kept


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
) -> dict:
    """Align the model of directory `model`; `training_sets` is the newest day. Returns the curves and the decision.

    Raises ValueError when fewer than two rows hold a positive, FloatingPointError when a gradient is not finite.
    """
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    policy, p_score = load_model(model, tok), PScore.load(reward, tok).eval()
    behaviour = load_model(model, tok).eval()
    data = TrainingSet(training_sets, tok.catalogue, policy.config)
    with_targets = rng.permutation(np.flatnonzero(data.targets.lengths > 0))
    if len(with_targets) < 2:
        raise ValueError(
            f"{len(with_targets)} rows with a positive (long_view, like, follow, forward) in the newest day: alignment "
            "needs one to train on and one to measure; align a day with more impressions"
        )
    probe = with_targets[: min(config.probe_users, max(1, len(with_targets) // 4))]
    sessions = _longer_half(data, with_targets[len(probe) :])
    users = rng.permutation(sessions)[: max(round(config.user_share * len(sessions)), config.min_users)]
    batches = (list(data.batches(sessions, config.batch_size, seed)) or [sessions])[: config.max_steps]
    sparse = {id(m.weight) for m in policy.modules() if isinstance(m, torch.nn.Embedding)}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in policy.parameters() if id(p) in sparse], "lr": config.lr_sparse},
            {"params": [p for p in policy.parameters() if id(p) not in sparse], "lr": config.lr_dense},
        ],
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    before = _measure(policy, p_score, data, probe, tok, config, seed)
    curve, said = [], time.monotonic()
    for step, rows in enumerate(batches):
        if step % config.sync_every == 0:
            behaviour.load_state_dict(policy.state_dict())
        policy.train()
        batch = data.batch(rows, 8)
        z, mask = policy.encode(batch)
        weight = batch["target_mask"].float()
        rsft, _ = ntp_loss(policy, batch["targets"], weight, z, mask)
        rsft_total = rsft + config.item_loss_weight * item_loss(policy, batch["targets"], weight, z)
        chosen = users[np.arange(step * config.users_per_step, (step + 1) * config.users_per_step) % len(users)]
        ecpo, form, stats = _preference_losses(policy, behaviour, p_score, data.context(chosen), tok, config, generator)
        loss = rsft_total + config.ecpo_weight * ecpo + config.format_weight * form
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()} at alignment step {step}; lower ecpo_weight")
        optimizer.step()
        for module in policy.modules():
            if isinstance(module, MoE):
                module.balance()
        curve.append(
            {"step": step + 1, **stats, "ecpo_loss": ecpo.item(), "rsft_loss": rsft.item(), "grad_norm": norm.item()}
        )
        if time.monotonic() - said > 5:
            said = time.monotonic()
            progress(f"step {step + 1}/{len(batches)}  reward {stats['reward']:.4f}  legal {stats['legality']:.3f}")
    after = _measure(policy, p_score, data, probe, tok, config, seed)
    kept, reason = _decide(before, after, config)
    if kept == "aligned":
        save_model(policy, out)
    else:
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(model / name, out / name)
    shutil.copyfile(model / "optimizer.safetensors", out / "optimizer.safetensors")
    metrics = {
        "curve": curve,
        **{f"{k}_before": v for k, v in before.items()},
        **{f"{k}_after": v for k, v in after.items()},
        "kept": kept,
        "reason": reason,
        "users": len(users),
        "sessions": len(sessions),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def _longer_half(data: TrainingSet, rows: np.ndarray) -> np.ndarray:
    """RSFT's filter: the half of the sessions with the longer play time (unknown play time counts as none)."""
    row = np.repeat(np.arange(len(data)), data.shown.lengths)
    play = np.bincount(row, np.maximum(data.shown.values[:, 3], 0), minlength=len(data))
    order = rows[np.argsort(play[rows], kind="stable")]
    return order[len(order) // 2 :]


def sequence_logp(model: OneRec, codes_BGL: Tensor, z: Tensor, mask: Tensor) -> Tensor:
    """log pi(o | u) of code tuples, summed over the levels, [B, G]."""
    levels = model.code_logits(codes_BGL, z, mask)
    steps = [
        torch.log_softmax(x.float(), -1).gather(2, codes_BGL[..., i : i + 1])[..., 0] for i, x in enumerate(levels)
    ]
    return torch.stack(steps).sum(0)


def _preference_losses(
    policy: OneRec,
    behaviour: OneRec,
    p_score: PScore,
    context: dict[str, Tensor],
    tok: Tokenizer,
    config: AlignConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, dict]:
    """ECPO loss on scored rollouts and format loss on free samples (both to be minimised), and what they saw."""
    with torch.no_grad():
        z_old, mask_old = behaviour.encode(context)
        codes, beam_logp = beam_search(behaviour, z_old, mask_old, config.group_size, tok.trie)
        item = tok.trie.lookup(codes)
        valid = torch.isfinite(beam_logp)  # a surplus beam may spell an item that stands in the group already
        reward = p_score.score(context, item.clamp_min(0))
        free = sample_codes(behaviour, z_old, mask_old, config.format_samples, generator)
        legal = tok.trie.lookup(free) >= 0
        pick = torch.randperm(free.shape[1], generator=generator)[: config.format_k]
        all_codes = torch.cat([codes, free[:, pick]], 1)
        logp_old = sequence_logp(behaviour, all_codes, z_old, mask_old)
    z, mask = policy.encode(context)
    logp = sequence_logp(policy, all_codes, z, mask)
    G = codes.shape[1]
    preferred = ecpo_objective(logp[:, :G], logp_old[:, :G], group_advantage(reward, valid))
    formed = ecpo_objective(logp[:, G:], logp_old[:, G:], format_advantage(legal[:, pick]))
    stats = {"reward": reward[valid].mean().item(), "legality": legal.float().mean().item()}
    return -preferred.mean(), -formed.mean(), stats


@torch.no_grad()
def _measure(
    model: OneRec, p_score: PScore, data: TrainingSet, rows: np.ndarray, tok: Tokenizer, config: AlignConfig, seed: int
) -> dict[str, float]:
    """Mean P-Score of the legal items among the top 10, recall of the rows' targets, and legality of free samples."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    reward, recall, legality = [np.empty(0)], [], []
    for chunk in np.array_split(rows, max(1, len(rows) // 256)):
        context = data.context(chunk)
        item, score, _ = rank_items(model, context, tok.trie, 2 * config.probe_k)
        item = torch.where(torch.isfinite(score), item, -1)  # a surplus beam holds no item
        first = item[:, :10]
        reward.append(p_score.score(context, first.clamp_min(0))[first >= 0].numpy())
        top = item[:, : config.probe_k].numpy()
        recall += [np.isin(data.targets.row(i), top[j]).mean() for j, i in enumerate(chunk)]
        z, mask = model.encode(context)
        free = sample_codes(model, z, mask, 8, generator)
        legality.append((tok.trie.lookup(free) >= 0).float().mean().item())
    return {
        "reward": float(np.concatenate(reward).mean()),
        "recall_probe": float(np.mean(recall)),
        "legality": float(np.mean(legality)),
    }


def _decide(before: dict[str, float], after: dict[str, float], config: AlignConfig) -> tuple[str, str]:
    """Keep the aligned model unless the probe's recall fell past the limit."""
    floor = before["recall_probe"] * (1 - config.allowed_recall_loss)
    was, now = before["recall_probe"], after["recall_probe"]
    if now < floor:
        return "pretrained", f"recall of the probe fell from {was:.4f} to {now:.4f}, limit {floor:.4f}"
    return "aligned", f"recall of the probe {was:.4f} -> {now:.4f}, limit {floor:.4f}"
