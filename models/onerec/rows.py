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


@dataclasses.dataclass(frozen=True)
class Layout:
    """The grid [B, T] and its valid positions. `mask_BT` None: all are valid, and packing is only a view.

    `index_N` None beside a mask: all rows are kept, and only attention leaves out the invalid ones.
    `causal` names positions first..end - 1 that attend to themselves and the older of their own range alone; all others
    attend to everything.
    """

    batch: int
    length: int
    mask_BT: Tensor | None = None
    index_N: Tensor | None = None  # of the flattened grid
    causal: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        batch: int,
        length: int,
        mask_BT: Tensor | None,
        packs: bool = True,
        causal: tuple[int, int] | None = None,
    ) -> Layout:
        index = None if mask_BT is None or not packs else mask_BT.flatten().nonzero()[:, 0]
        return cls(batch, length, mask_BT, index, causal)

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


def attend(
    q_NHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, of: Layout, to: Layout, dropout: float = 0.0, kernel: bool = True
) -> Tensor:
    """Each user's queries (laid out by `of`) attend to that user's keys (by `to`): [N, H, d].

    kernel: `attend_masked` may take the place of general attention. A layout with a causal range attends to itself, by
    general attention: the other kernels take no such mask.
    """
    if of.causal is not None:
        assert of is to, "a causal range is one of self-attention"
        q, k, v = (of.pad(x).transpose(1, 2) for x in (q_NHd, k_SHd, v_SHd))
        allowed = _allowed(of, of.causal, q.device)
        return of.pack(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout).transpose(1, 2))
    if to.index_N is not None and not dropout and varlen_runs(q_NHd):
        return _varlen(q_NHd, k_SHd, v_SHd, of, to)
    q, k, v = of.pad(q_NHd).transpose(1, 2), to.pad(k_SHd).transpose(1, 2), to.pad(v_SHd).transpose(1, 2)
    if to.mask_BT is not None and kernel and infers(q):
        from models.onerec import inference_kernels  # needs Triton, which comes with PyTorch for CUDA

        return of.pack(inference_kernels.attend_masked(q, k, v, to.mask_BT))
    mask = None if to.mask_BT is None else to.mask_BT[:, None, None]
    y_BHTd = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return of.pack(y_BHTd.transpose(1, 2))


def _allowed(of: Layout, causal: tuple[int, int], device: torch.device) -> Tensor:
    """Who may look at whom under a causal range, True = may: [B, 1, T, T], or [T, T] where all positions are valid.

    Every position sees itself, padding too: some kernels make nan of a row without any key.
    """
    at_T = torch.arange(of.length, device=device)
    inside_T = (at_T >= causal[0]) & (at_T < causal[1])
    older_TT = inside_T & (at_T <= at_T[:, None])
    allowed_TT = older_TT | ~inside_T[:, None]
    if of.mask_BT is None:
        return allowed_TT
    own_TT = at_T == at_T[:, None]
    return (allowed_TT & (of.mask_BT[:, None] | own_TT))[:, None]


def reads_few(y: Tensor, width: int, queries: int) -> bool:
    """Whether the kernel for a few queries over long rows y takes such tensors; training only, heads `width` wide."""
    return (
        y.is_cuda
        and y.dtype in (torch.float16, torch.bfloat16)
        and width in (16, 32, 64, 128)
        and queries <= 128
        and torch.is_grad_enabled()
    )


def infers(x: Tensor) -> bool:
    """Whether the kernels of a request without gradient take such a tensor, heads along its last dimension."""
    return (
        x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.shape[-1] in (16, 32, 64, 128)
        and not torch.is_grad_enabled()
    )


def read_few(q_BQHd: Tensor, kv_S2Hd: Tensor, slot_2Hd: Tensor | None, to: Layout) -> Tensor:
    """Each user's queries attend to that user's packed rows (laid out by `to`): [B, Q, H, d]."""
    from models.onerec import attention_kernels  # needs Triton, which comes with PyTorch for CUDA

    return attention_kernels.read(q_BQHd, kv_S2Hd, slot_2Hd, to.starts(q_BQHd.device))


def varlen_runs(x: Tensor) -> bool:
    """Whether the variable-length kernel takes such a tensor."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _varlen(q_NHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, of: Layout, to: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # exists since PyTorch 2.10; only CUDA comes here

    starts_of, starts_to = of.starts(q_NHd.device), to.starts(q_NHd.device)
    return cast(Tensor, varlen_attn(q_NHd, k_SHd, v_SHd, starts_of, starts_to, of.length, to.length))
