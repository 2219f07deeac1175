"""Where a step's time goes: its kernels on the device by time, and in groups. `step_speed --profile` prints it."""

from __future__ import annotations

import json
import re

import torch
from torch import Tensor

from benchmarks.training.timed_step import Trainer, wait

GROUPS = {  # of a profile's kernels, by name; the first that fits
    "optimiser": r"[Aa]dam|^_update",
    "attention": r"fmha|flash|cudnn.*(sdpa|attn)|sdpa|^_forward|^_backward|varlen",
    "table gradients": r"embedding|[Rr]adix|[Ss]ort|_sum_pieces|_sum_rows|compute_grad|sum_and_scatter|cub::",
    "lookups": r"^_gather",
    "matrix products": r"nvjet|gemm|cutlass|xmma|cublas|grouped|splitK",
    "copies": r"Memcpy|Memset|CatArray|copy_|fill",
    "norms": r"^triton_.*rms_norm",
    "compiled element-wise": r"^triton_poi",
    "compiled reductions": r"^triton_(red|per|mix)",
    "clipping": r"[Nn]orm|foreach|multi_tensor",
}


def profile(trainer: Trainer, batch: dict[str, Tensor], device: str) -> None:
    """One step's kernels by time on the device."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as p:
        trainer(batch)
        wait(device)
    if device != "cuda":
        print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=70))
        return
    on_device = [
        e
        for e in p.key_averages()
        if e.device_type == torch.autograd.DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
    ]
    kernels = sorted(on_device, key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in kernels)
    print(f"kernels of one step, {total / 1e3:.1f} ms together")
    groups = dict.fromkeys([*GROUPS, "rest"], 0.0)
    for e in kernels:
        group = next((g for g, pattern in GROUPS.items() if re.search(pattern, e.key)), "rest")
        groups[group] += e.self_device_time_total / 1e3
    print("groups, ms:", json.dumps({g: round(ms, 2) for g, ms in groups.items()}))
    for e in kernels[:70]:
        print(f"{e.self_device_time_total / 1e3:9.3f} ms {e.count:5d} x  {e.key[:150]}")
