"""AdamW of one parameter as a Triton kernel: float32 master and moments, gradient and working copy in bfloat16.

    adamw(master, copy, gradient, exp_avg, exp_avg_sq, scale, rate, beta1, beta2, eps, decay, bias1, bias2)

`TRITON_INTERPRET=1` runs it on a CPU, slowly; tests do. Imported only where CUDA is used.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def _update(
    master_ptr, copy_ptr, gradient_ptr, m_ptr, v_ptr, scale_ptr, N, rate, beta1, beta2, eps, decay, bias1, bias2,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """PyTorch's AdamW: decoupled decay, bias-corrected moments; the gradient times *scale."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = i < N
    g = tl.load(gradient_ptr + i, mask=real, other=0.0).to(tl.float32) * tl.load(scale_ptr)
    m = tl.load(m_ptr + i, mask=real, other=0.0)
    v = tl.load(v_ptr + i, mask=real, other=0.0)
    x = tl.load(master_ptr + i, mask=real, other=0.0)
    m += (g - m) * (1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    x = x * (1 - rate * decay) - rate / bias1 * m / (tl.sqrt(v) / bias2 + eps)
    tl.store(m_ptr + i, m, mask=real)
    tl.store(v_ptr + i, v, mask=real)
    tl.store(master_ptr + i, x, mask=real)
    tl.store(copy_ptr + i, x.to(copy_ptr.dtype.element_ty), mask=real)


def adamw(
    master: Tensor,
    copy: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    scale: Tensor,
    *constants: float,
) -> None:
    """One update in place; constants: rate, beta1, beta2, eps, decay, the bias corrections (of v: its root).

    master, m and v are float32, contiguous and of one shape with copy and gradient; scale is a scalar on the device.
    """
    N = master.numel()
    _update[(triton.cdiv(N, BLOCK),)](
        master, copy, gradient.contiguous(), m, v, scale, N, *constants, BLOCK, num_warps=8
    )
