"""What watches alignment: a probe on users that it never trains on, and the health of each step.

The probe decides. Alignment is stopped, and the pre-trained model kept, when held-out recall falls past the limit (most
often while the reward rises: the policy has learned to please the reward model), or when a gradient is not finite.
"""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import torch
from torch import Tensor

from models.onerec.beam_search import sample_codes
from models.onerec.model import OneRec
from models.onerec.ranking import rank_items
from models.reward.reward import Reward, RewardInput
from models.tokenizer.trie import Trie
from models.training.data import TrainingSet

TOP, SPIKE, RECENT = 10, 5.0, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Mean reward of the items in the top 10, recall of the rows' targets, legality of free samples; the top 10."""

    reward: float
    recall_probe: float
    legality: float
    top_items: Tensor  # [users, 10] catalogue indices, -1 where there is none

    def numbers(self) -> dict[str, float]:
        return {"reward": self.reward, "recall_probe": self.recall_probe, "legality": self.legality}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Held-out rows and how they are measured. `k` is recall's cutoff; the beam is twice as wide."""

    data: TrainingSet
    rows: np.ndarray
    reward: Reward
    trie: Trie  # on `device`
    k: int
    seed: int
    free_samples: int = 8
    device: str = "cpu"

    @torch.no_grad()
    def measure(self, model: OneRec) -> Measured:
        """Rank as serving does, by beam and item head. The model is left as it was, in training or not."""
        training = model.training
        model.eval()
        generator = torch.Generator(self.device).manual_seed(self.seed)
        reward, recall, legality, tops = [torch.empty(0)], [], [], []
        for chunk in np.array_split(self.rows, max(1, len(self.rows) // 256)):
            context = {k: v.to(self.device) for k, v in self.data.context(chunk).items()}
            item, score, codes = rank_items(model, context, self.trie, 2 * self.k)
            item = torch.where(torch.isfinite(score), item, -1)  # a surplus beam holds no item
            first = item[:, :TOP]
            value = self.reward(RewardInput(context=context, codes_BGL=codes[:, :TOP], item_BG=first))
            reward.append(value[first >= 0].cpu())
            tops.append(first.cpu())
            top = item[:, : self.k].cpu().numpy()
            recall += [np.isin(self.data.targets.row(i), top[j]).mean() for j, i in enumerate(chunk)]
            z, mask = model.encode(context)
            free = sample_codes(model, z, mask, self.free_samples, generator)
            legality.append((self.trie.lookup(free) >= 0).float().mean(1).cpu())
        model.train(training)
        return Measured(
            reward=torch.cat(reward).mean().item(),
            recall_probe=float(np.mean(recall)),
            legality=torch.cat(legality).mean().item(),
            top_items=torch.cat(tops),
        )


def harm(before: Measured, now: Measured, allowed_recall_loss: float) -> str | None:
    """Why alignment must not ship, in plain words; None while held-out recall stays within the limit (relative)."""
    limit = before.recall_probe * (1 - allowed_recall_loss)
    if now.recall_probe >= limit:
        return None
    rose = "while the reward rose" if now.reward > before.reward else "and the reward did not rise"
    return (
        f"held-out recall fell from {before.recall_probe:.4f} to {now.recall_probe:.4f}, limit {limit:.4f}, {rose} "
        f"({before.reward:.4f} -> {now.reward:.4f})"
    )


class Watch:
    """Counts what is odd about the steps: gradient spikes, samples whose ratio is clipped, entropy that is lost."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=RECENT)
        self.spikes, self.largest_norm, self.largest_ratio = 0, 0.0, 0.0
        self._entropy: list[float] = []

    def step(self, grad_norm: float, ratio_max: float, entropy: float) -> bool:
        """Record one step; True when its gradient norm is a spike: SPIKE times the median of the last RECENT steps."""
        spike = len(self._norms) == RECENT and grad_norm > SPIKE * float(np.median(self._norms))
        self._norms.append(grad_norm)
        self.spikes += spike
        self.largest_norm = max(self.largest_norm, grad_norm)
        self.largest_ratio = max(self.largest_ratio, ratio_max)
        self._entropy.append(entropy)
        return spike

    def summary(self) -> dict[str, float]:
        """Totals for the report; entropy as the means of the first and the last fifth of the steps."""
        fifth = max(1, len(self._entropy) // 5)
        return {
            "grad_spikes": self.spikes,
            "grad_norm_max": self.largest_norm,
            "ratio_max": self.largest_ratio,
            "entropy_first": float(np.mean(self._entropy[:fifth])) if self._entropy else 0.0,
            "entropy_last": float(np.mean(self._entropy[-fifth:])) if self._entropy else 0.0,
        }


def ratio_health(logp: Tensor, logp_old: Tensor, advantage: Tensor, epsilon: float) -> dict[str, float]:
    """Largest pi / pi_old of the samples that count, and the share of them outside 1 - epsilon .. 1 + epsilon."""
    counts = advantage != 0
    if not counts.any():
        return {"ratio_max": 1.0, "clipped": 0.0}
    ratio = torch.exp((logp.detach() - logp_old)[counts])
    return {"ratio_max": ratio.max().item(), "clipped": ((ratio - 1).abs() > epsilon).float().mean().item()}
