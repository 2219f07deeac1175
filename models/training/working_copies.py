"""bfloat16 working copies of float32 master weights, and an AdamW that reads and writes both.

    working = WorkingCopies(loss_module, optimizer, torch.bfloat16)
    loss = working(batch)                # the module's forward by the copies
    loss.backward()
    norm = working.norm()
    working.step(clip_norm)              # clips, updates masters and moments, rounds the masters into the copies

The step casts no weight and no gradient: gradients stay bfloat16, as the products made them, and are widened in the
kernel's registers. The numbers are those of a cast at every use: the copy is the master rounded, the gradient of a cast
is a widening. Masters and moments stay the module's parameters and the optimiser's state, so checkpoints do not change;
whoever loads one makes the copies afterwards. One process; on CUDA one kernel a parameter, elsewhere plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WorkingCopies:
    """Copies of all parameters of a module in `dtype`, by name, and the step that keeps them."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.AdamW, dtype: torch.dtype) -> None:
        self.module, self.optimizer = module, optimizer
        self.parameters = {name: p.detach().clone().to(dtype).requires_grad_() for name, p in module.named_parameters()}
        self._copy = {id(p): self.parameters[name] for name, p in module.named_parameters()}
        state: dict[str, Tensor] = next(iter(optimizer.state.values()), {})
        self.steps = int(state["step"]) if "step" in state else 0
        self._norm: Tensor | None = None

    def __call__(self, *args: Any) -> Any:
        return torch.func.functional_call(self.module, self.parameters, args)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The gradients' norm over everything, float32; the next `step` clips by it."""
        gradients = [copy.grad for copy in self.parameters.values() if copy.grad is not None]
        self._norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)))
        return self._norm

    @torch.no_grad()
    def step(self, clip_norm: float) -> None:
        """Update all parameters that have a gradient, and drop the gradients."""
        norm = self.norm() if self._norm is None else self._norm
        scale, self._norm = (clip_norm / (norm + 1e-6)).clamp_max(1.0), None
        self.steps += 1
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                copy, state = self._copy[id(p)], self.optimizer.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                    state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                if copy.grad is None:
                    continue
                state["step"].fill_(self.steps)
                update(p, copy, copy.grad, state["exp_avg"], state["exp_avg_sq"], scale, group, self.steps)
                copy.grad = None


def update(
    master: Tensor,
    copy: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    scale: Tensor,
    group: dict[str, Any],
    step: int,
) -> None:
    """PyTorch's AdamW of one parameter in place: decoupled decay, bias-corrected moments; the gradient times scale."""
    beta1, beta2 = group["betas"]
    rate, decay, eps = float(group["lr"]), float(group["weight_decay"]), group["eps"]
    bias1, bias2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
    if master.is_cuda:
        from models.training.adamw_kernel import adamw  # needs Triton, which comes with PyTorch for CUDA

        adamw(master, copy, gradient, m, v, scale, rate, beta1, beta2, eps, decay, bias1, bias2)
        return
    g = gradient.float() * scale
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    master.mul_(1 - rate * decay).addcdiv_(m, (v.sqrt() / bias2).add_(eps), value=-rate / bias1)
    copy.copy_(master)
