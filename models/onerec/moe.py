"""SwiGLU experts with loss-free load balancing (DeepSeek, arXiv 2408.15664; OneRec TR section 2.3).

Experts are chosen by the k largest of sigmoid affinity + bias; outputs are weighted by the unbiased affinities,
normalised over the chosen. The bias gets no gradient: after a training step `balance()` moves it by the sign of the
load error.

Legend: N tokens, D model width, E experts, K experts a token, F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MoE(nn.Module):
    """Top-k mixture of experts, computed as three grouped matrix products over tokens sorted by expert."""

    bias_E: Tensor
    load_E: Tensor

    def __init__(
        self, d_model: int, experts: int, experts_per_token: int, expert_dim: int, balance_rate: float
    ) -> None:
        super().__init__()
        self.k, self.rate = experts_per_token, balance_rate
        self.router = nn.Linear(d_model, experts, bias=False)
        self.gate_EDF = nn.Parameter(torch.empty(experts, d_model, expert_dim))
        self.up_EDF = nn.Parameter(torch.empty(experts, d_model, expert_dim))
        self.down_EFD = nn.Parameter(torch.empty(experts, expert_dim, d_model))
        for w in (self.gate_EDF, self.up_EDF, self.down_EFD):
            nn.init.normal_(w, std=w.shape[1] ** -0.5)
        self.register_buffer("bias_E", torch.zeros(experts))
        self.register_buffer("load_E", torch.zeros(experts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]. In training the tokens each expert received are added to `load_E`."""
        x_ND = x.reshape(-1, x.shape[-1])
        affinity_NE = torch.sigmoid(self.router(x_ND))
        chosen_NK = torch.topk(affinity_NE.detach() + self.bias_E, self.k, dim=-1).indices
        gate_NK = affinity_NE.gather(1, chosen_NK)
        gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True)
        expert, order = chosen_NK.flatten().sort(stable=True)
        load = torch.bincount(expert, minlength=len(self.bias_E))
        if self.training:
            self.load_E += load
        ends = load.cumsum(0).to(torch.int32)
        token = order // self.k
        x_sorted = x_ND[token]
        hidden = F.silu(_grouped(x_sorted, self.gate_EDF, ends)) * _grouped(x_sorted, self.up_EDF, ends)
        y_sorted = _grouped(hidden, self.down_EFD, ends) * gate_NK.flatten()[order, None]
        return torch.zeros_like(x_ND).index_add(0, token, y_sorted).view(x.shape)

    @torch.no_grad()
    def balance(self) -> None:
        """After an optimiser step: bias += rate * sign(mean load - load), then forget the load."""
        self.bias_E += self.rate * torch.sign(self.load_E.mean() - self.load_E)
        self.load_E.zero_()


def _grouped(x_ND: Tensor, w_EDF: Tensor, ends: Tensor) -> Tensor:
    """Each run of rows times its expert's matrix; in bfloat16 on CUDA, whose kernel takes nothing else."""
    if not x_ND.is_cuda:
        return F.grouped_mm(x_ND, w_EDF, offs=ends)
    return F.grouped_mm(x_ND.bfloat16(), w_EDF.bfloat16(), offs=ends).to(x_ND.dtype)
