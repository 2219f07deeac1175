"""The Triton code that PyTorch's compiler writes for a card that is not there: a process is told of one.

    python -m tests.models.onerec.code_for_cuda                    # an addition and its RMSNorm over long rows
    python -m tests.models.onerec.code_for_cuda --barriers         # the same inside `loop_barriers`

Only the text is made: neither CUDA nor Triton is needed, and nothing runs.
"""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace
from unittest import mock

import torch
import torch._dynamo.device_interface as interfaces
import torch._inductor.scheduler
import torch._subclasses.fake_tensor as fake
import torch.utils._triton
from torch import Tensor
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.fx.experimental.proxy_tensor import make_fx

from models.onerec.loop_barrier import loop_barriers

CARD = SimpleNamespace(
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
)


def told_of_a_card() -> contextlib.ExitStack:
    """What the compiler asks the driver and Triton, answered."""
    stack, here = contextlib.ExitStack(), interfaces.CudaInterface
    answers = {
        (fake, "init_gpu_context"): lambda device: None,
        (torch.cuda, "is_available"): lambda: True,
        (torch.cuda, "current_device"): lambda: 0,
        (torch.cuda, "get_device_capability"): lambda device=None: (CARD.major, CARD.minor),
        (torch.cuda, "get_device_properties"): lambda device=None: CARD,
        (here, "is_available"): staticmethod(lambda: True),
        (here, "current_device"): staticmethod(lambda: 0),
        (here, "get_compute_capability"): staticmethod(lambda device=None: (CARD.major, CARD.minor)),
        (here, "get_device_properties"): staticmethod(lambda device=None: CARD),
        (torch._inductor.scheduler, "has_triton"): lambda *device: True,
        (torch.utils._triton, "triton_hash_with_backend"): lambda: "none",
    }
    for (where, name), answer in answers.items():
        stack.enter_context(mock.patch.object(where, name, answer))
    torch._C._ensureCUDADeviceGuardSet()
    return stack


def added_and_normed(x_ND: Tensor, r_ND: Tensor, w_D: Tensor) -> tuple[Tensor, Tensor]:
    """The sum is a result, so the first loop stores it; the second loads it again."""
    h_ND = x_ND + r_ND
    return h_ND, torch.rms_norm(h_ND, (h_ND.shape[-1],), w_D)


def code(rows: int, width: int) -> str:
    """Python text of the compiled `added_and_normed`."""
    mode = fake.FakeTensorMode(allow_non_fake_inputs=True)
    with told_of_a_card(), mode, torch.no_grad():
        inputs = [torch.empty(*shape, device="cuda") for shape in ((rows, width), (rows, width), (width,))]
        graph = GraphLowering(make_fx(added_and_normed, decomposition_table=select_decomp_table())(*inputs))
        with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            graph.run(*inputs)
            return graph.codegen()[0].value


if __name__ == "__main__":
    with loop_barriers() if "--barriers" in sys.argv else contextlib.nullcontext():
        print(code(4096, 3000))
