"""The bag of a user's histories: one vector that says which items the user met, whatever their order.

    model.bag.vector(batch)      # where the configuration has history_bag

Which items a user met says much of what they meet next, and a linear model reads it from all of them at once (EASE);
attention has a few heads for it. Off by default: docs/decisions/quality.md.

Legend: B users, L events of all histories together, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onerec.config import OneRecConfig
from models.onerec.embedding import Table
from models.onerec.pathways import HISTORIES


class HistoryBag(Table):
    """A row of every item, and one of the unknown."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config.items + 1, config.d_model)
        nn.init.normal_(self.weight, std=0.01)
        self.dropout = config.dropout

    def vector(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, D]: the rows of all items of the three histories, each once, summed, over the root of their number.

        An item is left out with the model's dropout.
        """
        items = [batch[name][..., 0] for name in HISTORIES]
        masks = [batch.get(f"{name}_mask", torch.ones_like(i, dtype=torch.bool)) for name, i in zip(HISTORIES, items)]
        index_BL = torch.where(torch.cat(masks, 1), torch.cat(items, 1), -1).sort(1).values
        again_BL = F.pad(index_BL[:, 1:] == index_BL[:, :-1], (1, 0))
        real_BL = (~again_BL & (index_BL >= 0)).to(self.weight.dtype)
        kept_BL = F.dropout(real_BL, self.dropout, self.training)
        sum_BD = torch.einsum("bl,bld->bd", kept_BL, self(index_BL.clamp_min(0)))
        return sum_BD / real_BL.sum(1, keepdim=True).clamp_min(1).sqrt()
