"""bfloat16 working copies of float32 master weights, and AdamW in one kernel that reads and writes both.

    working = WorkingCopies(loss_module, optimizer, torch.bfloat16)
    loss = torch.func.functional_call(loss_module, working.parameters, (batch,))
    loss.backward()
    working.step(clip_norm)          # clips by norm, updates masters and moments, rounds the masters into the copies

The step casts no weight and no gradient: gradients stay bfloat16, as the products made them, and are widened in the
kernel's registers. The numbers are those of a cast at every use: the copy is the master rounded, the gradient of a cast
is a widening. Masters and moments stay the module's parameters and the optimiser's state, so checkpoints do not change.
One process, CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WorkingCopies:
    """Copies of all parameters of a module in `dtype`, by name, and the step that keeps them."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.AdamW, dtype: torch.dtype) -> None:
        self.optimizer, self.steps = optimizer, 0
        self.parameters = {name: p.detach().clone().to(dtype).requires_grad_() for name, p in module.named_parameters()}
        self._copy = {id(p): self.parameters[name] for name, p in module.named_parameters()}

    @torch.no_grad()
    def step(self, clip_norm: float) -> Tensor:
        """Clip and update; the gradients' norm before clipping. Gradients are dropped."""
        from models.training.adamw_kernel import adamw  # needs Triton, which comes with PyTorch for CUDA

        gradients = [copy.grad for copy in self.parameters.values() if copy.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)))
        scale = (clip_norm / (norm + 1e-6)).clamp_max(1.0)
        self.steps += 1
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                copy, state = self._copy[id(p)], self.optimizer.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                if copy.grad is not None:
                    adamw(p, copy, copy.grad, state["exp_avg"], state["exp_avg_sq"], scale, group, self.steps)
                copy.grad = None
        return norm
