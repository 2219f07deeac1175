"""Packed rows: the positions of a padded grid that hold something, end to end, and attention between them.

Whatever works row by row (projections, norms, feed-forward, experts) runs on packed rows, so that padding costs
nothing. An exported program, whose shapes must not depend on the data, keeps all rows of the grid. Attention runs on
the packed rows themselves where there is a kernel for that (CUDA, half precision), else on the padded grid with a mask.

Legend: B users, T grid length, N valid rows of the grid, H heads, d head width, D model width.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED = [True]  # a benchmark turns the kernels off


@dataclasses.dataclass(frozen=True)
class Layout:
    """The grid [B, T] and its valid positions. `mask_BT` None: all are valid, and packing is only a view.

    `index_N` None beside a mask: all rows are kept, and only attention leaves out the invalid ones. `valid_B` instead
    of a mask: all rows are kept, and a user's first `valid_B` are the valid ones (`valid_first`).
    """

    batch: int
    length: int
    mask_BT: Tensor | None = None
    index_N: Tensor | None = None  # of the flattened grid
    valid_B: Tensor | None = None

    @classmethod
    def of(cls, batch: int, length: int, mask_BT: Tensor | None, packs: bool = True) -> Layout:
        index = None if mask_BT is None or not packs else mask_BT.flatten().nonzero()[:, 0]
        return cls(batch, length, mask_BT, index)

    def pack(self, x_BT: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...], the users' rows in order."""
        x = x_BT.flatten(0, 1)
        return x if self.index_N is None else x.index_select(0, self.index_N)

    def pad(self, x_N: Tensor) -> Tensor:
        """[N, ...] -> [B, T, ...], zeros where nothing stands."""
        if self.index_N is not None:
            grid = x_N.new_zeros(self.batch * self.length, *x_N.shape[1:])
            x_N = grid.index_copy(0, self.index_N, x_N)
        return x_N.unflatten(0, (self.batch, self.length))

    def starts(self, device: torch.device) -> Tensor:
        """Where each user's rows begin, and the end of the last: int32 [B + 1]."""
        if self.mask_BT is None or self.index_N is None:
            return torch.arange(0, (self.batch + 1) * self.length, self.length, dtype=torch.int32, device=device)
        return F.pad(self.mask_BT.sum(1).cumsum(0), (1, 0)).int()


def attend(q_NHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, of: Layout, to: Layout, dropout: float = 0.0) -> Tensor:
    """Each user's queries (laid out by `of`) attend to that user's keys (by `to`): [N, H, d]."""
    if to.index_N is not None and not dropout and varlen_runs(q_NHd):
        return _varlen(q_NHd, k_SHd, v_SHd, of, to)
    q, k, v = of.pad(q_NHd).transpose(1, 2), to.pad(k_SHd).transpose(1, 2), to.pad(v_SHd).transpose(1, 2)
    valid = to.mask_BT if to.valid_B is None else to.valid_B
    return of.pack(masked_attention(q, k, v, valid, dropout).transpose(1, 2))


def valid_first(x_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a grid [B, T, ...] with each user's valid ones first, in their order, and how many: int32 [B].

    Attention does not care where a key stands, and a kernel that is told a number of keys is more than twice as fast
    as one that reads a mask (benchmarks/serving/gpu_kernels.md).
    """
    order_BT = (~mask_BT).int().argsort(dim=1, stable=True)
    index = order_BT.view(*order_BT.shape, *[1] * (x_BT.ndim - 2)).expand_as(x_BT)
    return x_BT.gather(1, index), mask_BT.sum(1).int()


def masked_attention(
    q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, valid: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Attention [B, H, T, d]. valid: bool [B, S], True = may look; or int [B], the number of first keys that count;
    None: every query sees every key."""
    if valid is None:
        return F.scaled_dot_product_attention(q_BHTd, k_BHSd, v_BHSd, dropout_p=dropout)
    if valid.ndim == 1:
        if not dropout and fuses(q_BHTd, k_BHSd, v_BHSd):
            return _first_keys(q_BHTd, k_BHSd, v_BHSd, valid)
        valid = torch.arange(k_BHSd.shape[2], device=valid.device) < valid[:, None]
    return F.scaled_dot_product_attention(q_BHTd, k_BHSd, v_BHSd, attn_mask=valid[:, None, None], dropout_p=dropout)


def _first_keys(q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, valid_B: Tensor) -> Tensor:
    """The flash kernel, which takes a number of keys a user."""
    B, T, S = q_BHTd.shape[0], q_BHTd.shape[2], k_BHSd.shape[2]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTd, k_BHSd, v_BHSd))
    starts = torch.arange(B + 1, dtype=torch.int32, device=q.device)
    y_NHd = torch.ops.aten._flash_attention_forward(
        q, k, v, starts * T, starts * S, T, S, 0.0, False, False, seqused_k=valid_B
    )[0]
    return cast(Tensor, y_NHd).unflatten(0, (B, T)).transpose(1, 2)


def fuses(*tensors: Tensor) -> bool:
    """Whether the kernels of serving (here and in models/onerec/kernels.py) take these: CUDA, bfloat16, no gradient."""
    return (
        FUSED[0]
        and not torch.is_grad_enabled()
        and all(t.is_cuda and t.dtype == torch.bfloat16 and t.stride(-1) == 1 for t in tensors)
    )


def varlen_runs(x: Tensor) -> bool:
    """Whether the variable-length kernel takes such a tensor."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _varlen(q_NHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, of: Layout, to: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # exists since PyTorch 2.10; only CUDA comes here

    starts_of, starts_to = of.starts(q_NHd.device), to.starts(q_NHd.device)
    return cast(Tensor, varlen_attn(q_NHd, k_SHd, v_SHd, starts_of, starts_to, of.length, to.length))
