"""SwiGLU experts with loss-free load balancing (DeepSeek, arXiv 2408.15664; OneRec TR section 2.3).

Experts are chosen by the k largest of affinity + bias; outputs are weighted by the unbiased affinities. Sigmoid
affinities are normalised over the chosen (DeepSeek-V3), softmax ones are used as they are (OneRec V1). The bias gets no
gradient: after a training step `balance()` moves it by the sign of the load error. No token is ever dropped: the
grouped products take any number of rows an expert.

Legend: N tokens, D model width, E experts, K experts a token, F expert width, S shared expert's width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """One dense expert: down(silu(gate x) * up x)."""

    def __init__(self, d_model: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * inner, bias=False)
        self.down = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Permute(torch.autograd.Function):
    """x[order], whose gradient is gradient[place]: a gather both ways, as no row is taken twice.

    `place` is the inverse permutation of `order`.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, order_N: Tensor, place_N: Tensor) -> Tensor:
        ctx.save_for_backward(place_N)
        return x_ND.index_select(0, order_N)

    @staticmethod
    def backward(ctx, gradient_ND: Tensor):
        return gradient_ND.index_select(0, ctx.saved_tensors[0]), None, None


class MoE(nn.Module):
    """Top-k mixture of experts, computed as three grouped matrix products over tokens sorted by expert."""

    bias_E: Tensor
    load_E: Tensor

    def __init__(
        self,
        d_model: int,
        experts: int,
        experts_per_token: int,
        expert_dim: int,
        balance_rate: float,
        shared_dim: int = 0,
        affinity: str = "sigmoid",
    ) -> None:
        super().__init__()
        self.k, self.rate, self.affinity = experts_per_token, balance_rate, affinity
        self.router = nn.Linear(d_model, experts, bias=False)
        self.gate_EDF = nn.Parameter(torch.empty(experts, d_model, expert_dim))
        self.up_EDF = nn.Parameter(torch.empty(experts, d_model, expert_dim))
        self.down_EFD = nn.Parameter(torch.empty(experts, expert_dim, d_model))
        for w in (self.gate_EDF, self.up_EDF, self.down_EFD):
            nn.init.normal_(w, std=w.shape[1] ** -0.5)
        self.shared = SwiGLU(d_model, shared_dim) if shared_dim else None
        self.register_buffer("bias_E", torch.zeros(experts))
        self.register_buffer("load_E", torch.zeros(experts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]. In training the tokens each expert received are added to `load_E`."""
        x_ND = x.reshape(-1, x.shape[-1])
        gate_NK, chosen_NK = self.route(x_ND)
        expert, order = chosen_NK.flatten().short().sort(stable=True)  # a radix sort takes a pass a byte
        experts = torch.arange(len(self.bias_E), dtype=torch.int16, device=x.device)
        ends = torch.searchsorted(expert, experts, right=True, out_int32=True)
        if self.training:
            self.load_E += ends.diff(prepend=ends.new_zeros(1))
        place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
        if torch.is_grad_enabled():
            x_sorted = Permute.apply(x_ND[:, None].expand(-1, self.k, -1).flatten(0, 1), order, place)
        else:
            x_sorted = x_ND.index_select(0, order // self.k)
        hidden = F.silu(_grouped(x_sorted, self.gate_EDF, ends)) * _grouped(x_sorted, self.up_EDF, ends)
        y_sorted = _grouped(hidden, self.down_EFD, ends)
        y_NKD = Permute.apply(y_sorted, place, order) if torch.is_grad_enabled() else y_sorted.index_select(0, place)
        y_NKD = y_NKD.unflatten(0, gate_NK.shape)
        y_ND = (y_NKD * gate_NK[..., None].to(y_NKD.dtype)).sum(1)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return y_ND.view(x.shape)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and chosen experts, each [N, K]; in float32, whose steps are finer than the bias's."""
        half = x_ND.is_cuda and x_ND.dtype == self.router.weight.dtype == torch.bfloat16
        with torch.autocast(x_ND.device.type, enabled=False):
            if half and not torch.is_grad_enabled():  # the same products, which float32 holds exactly, summed in it
                logits_NE = torch.mm(x_ND, self.router.weight.t(), out_dtype=torch.float32)
            else:
                logits_NE = F.linear(x_ND.float(), self.router.weight.float())
        affinity_NE = torch.sigmoid(logits_NE) if self.affinity == "sigmoid" else torch.softmax(logits_NE, -1)
        chosen_NK = _largest(affinity_NE.detach() + self.bias_E, self.k)
        gate_NK = affinity_NE.gather(1, chosen_NK)
        if self.affinity == "sigmoid":
            gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True)
        return gate_NK, chosen_NK

    @torch.no_grad()
    def balance(self) -> None:
        """After an optimiser step: bias += rate * sign(mean load - load), then forget the load."""
        self.bias_E += self.rate * torch.sign(self.load_E.mean() - self.load_E)
        self.load_E.zero_()


def expert_report(model: nn.Module) -> list[dict[str, Any]]:
    """What a log shows of each MoE layer since the last `balance()`: name, load and bias of experts, dropped tokens.

    `imbalance` is the largest load over the mean (1 = even, 0 before any token).
    """
    report = []
    for name, moe in model.named_modules():
        if isinstance(moe, MoE):
            load = moe.load_E.tolist()
            mean = sum(load) / len(load)
            imbalance = max(load) / mean if mean else 0.0
            numbers = {"load": load, "bias": moe.bias_E.tolist(), "imbalance": imbalance, "dropped": 0}
            report.append({"layer": name, **numbers})
    return report


def _largest(x_NE: Tensor, k: int) -> Tensor:
    """The places [N, k] of the k largest, best first.

    Compiled without gradient on CUDA one after the other: each is fused with what made x, where topk is a kernel of its
    own (.5 ms of a request of 64 users and 512 beams).
    """
    if not (x_NE.is_cuda and torch.compiler.is_compiling() and not torch.is_grad_enabled()):
        return torch.topk(x_NE, k, dim=-1).indices
    column, chosen = torch.arange(x_NE.shape[1], device=x_NE.device), []
    for _ in range(k):
        chosen.append(x_NE.argmax(-1))
        x_NE = x_NE.masked_fill(column == chosen[-1][:, None], float("-inf"))
    return torch.stack(chosen, -1)


@torch.library.custom_op("onerec::grouped_mm", mutates_args=())
def grouped_mm(x_ND: Tensor, w_EDF: Tensor, ends: Tensor) -> Tensor:
    """F.grouped_mm for a program that is traced: on a CPU its own shape rule takes nothing but bfloat16, and a compiled
    package for CUDA has no way to call it in PyTorch 2.11."""
    return F.grouped_mm(x_ND, w_EDF, offs=ends)


@grouped_mm.register_fake
def _(x_ND: Tensor, w_EDF: Tensor, ends: Tensor) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], w_EDF.shape[2])


def _grouped(x_ND: Tensor, w_EDF: Tensor, ends: Tensor) -> Tensor:
    """Each run of rows times its expert's matrix. On CUDA in bfloat16, whose kernel takes nothing else; a request in
    float16 or float32 (no gradient, no autocast) keeps its type, by a kernel of ours."""
    exact = x_ND.is_cuda and x_ND.dtype == w_EDF.dtype != torch.bfloat16 and not torch.is_autocast_enabled("cuda")
    if exact and not torch.is_grad_enabled():
        from models.onerec.grouped_kernel import grouped_product  # needs Triton, which comes with PyTorch for CUDA

        return grouped_product(x_ND, w_EDF, ends)
    traced = torch.compiler.is_exporting() if x_ND.is_cuda else torch.compiler.is_compiling()
    x, w = (x_ND.bfloat16(), w_EDF.bfloat16()) if x_ND.is_cuda else (x_ND, w_EDF)
    y = grouped_mm(x, w, ends) if traced and not torch.is_grad_enabled() else F.grouped_mm(x, w, offs=ends)
    return y.to(x_ND.dtype)
