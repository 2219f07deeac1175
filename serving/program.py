"""The model of a release as Triton's `onerec` calls it: encoded tensors in, item ids out. The one seam to the model.

    program = Program.load(release, device="cpu"); program.warm_up()
    items_BK, scores_BK, sids_BKL = program(tensors, beam=128, top_k=128)

Eager PyTorch over models/onerec/ranking.py. An exported program has the same three methods and takes its place here.

Legend: B users, K items, L levels of a semantic ID.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.onerec.model import OneRec
from models.onerec.ranking import MAX_BEAM, rank_items
from models.reward.pscore import PScore
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import PATHWAYS


class Program:
    """Tokenizer, model and (where the release has one) reward model that belong together. One thread at a time."""

    def __init__(self, model: OneRec, tokenizer: Tokenizer, p_score: PScore | None, device: str) -> None:
        self.model, self.tokenizer, self.device = model.eval().to(device), tokenizer, torch.device(device)
        self.p_score = p_score.eval().to(device) if p_score else None
        self.max_beam = min(MAX_BEAM, len(tokenizer.catalogue))

    @classmethod
    def load(cls, release: Path, device: str = "cpu") -> Program:
        """Raises ValueError when tokenizer, model and reward model do not belong together."""
        tokenizer = Tokenizer.load(release / "tokenizer")
        p_score = PScore.load(release / "reward", tokenizer) if (release / "reward").is_dir() else None
        return cls(load_model(release / "model", tokenizer), tokenizer, p_score, device)

    def describe(self) -> dict[str, object]:
        return {"kind": "eager", "device": str(self.device), "reward": self.p_score is not None}

    @torch.inference_mode()
    def __call__(self, tensors: dict[str, Tensor], beam: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Items int64 [B, K], scores float32 [B, K] and codes int32 [B, K, L] on the CPU, best first.

        Where the beam holds fewer legal items than K: item -1, score -inf, codes -1.
        """
        index, score, codes = rank_items(self.model, self._batch(tensors), self.tokenizer.trie, beam)
        index, score, codes = (self._padded(t[:, :top_k].cpu(), top_k) for t in (index, score.float(), codes))
        found = torch.isfinite(score)
        ids = torch.from_numpy(self.tokenizer.catalogue.item_ids)
        items = torch.where(found, ids[torch.where(found, index, 0)], -1)
        return items, score.where(found, float("-inf")), codes.where(found[..., None], -1).int()

    @torch.inference_mode()
    def reward(self, tensors: dict[str, Tensor], items_BK: np.ndarray) -> np.ndarray:
        """P-Score of each item [B, K], -inf for item -1. ValueError when the release has no reward model."""
        if self.p_score is None:
            raise ValueError("this release has no reward model to order by; ask without it")
        index = self.tokenizer.catalogue.index(items_BK.ravel()).reshape(items_BK.shape)
        index_BK = torch.from_numpy(index).to(self.device)
        score = self.p_score.score(self._batch(tensors), index_BK).float().cpu().numpy()
        return np.where(items_BK >= 0, score, -np.inf).astype(np.float32)

    def _batch(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {"static": tensors["static"].long().to(self.device)}
        lengths = tensors["lengths"].to(self.device)
        for i, name in enumerate(PATHWAYS):
            events = tensors[name].long().to(self.device)
            place = torch.arange(events.shape[1], device=self.device)
            batch[name] = events
            batch[f"{name}_mask"] = place >= events.shape[1] - lengths[:, i : i + 1]
        return batch

    @staticmethod
    def _padded(t: Tensor, k: int) -> Tensor:
        if (missing := k - t.shape[1]) <= 0:
            return t
        fill = float("-inf") if t.is_floating_point() else 0
        return torch.cat([t, t.new_full((t.shape[0], missing, *t.shape[2:]), fill)], 1)
