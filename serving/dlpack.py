"""Tensors between Triton's Python backend and torch or NumPy, by DLPack. Imported inside the backend only.

The backend's own NumPy path returns empty arrays under NumPy 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils


def read(request: Any, name: str) -> torch.Tensor:
    """An input as a CPU tensor of its own, since the request's memory is gone later; ValueError when it is missing."""
    # Triton counts inputs: an optional one that is given hides a missing one.
    if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is None:
        raise ValueError(f"the input {name} is missing")
    return array(tensor)


def read_optional(request: Any, name: str) -> np.ndarray | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else array(tensor).numpy()


def array(tensor: Any) -> torch.Tensor:
    return torch.from_dlpack(tensor.to_dlpack()).clone()


def write(name: str, values: np.ndarray) -> Any:
    # The backend demands the strides of C order even of an empty tensor, where NumPy's are 0: torch's copy has them.
    # torch also exports it, because the backend renames the capsule in a way that NumPy's destructor stumbles over.
    tensor = torch.from_numpy(values.copy()).clone(memory_format=torch.contiguous_format)
    return pb_utils.Tensor.from_dlpack(name, torch.utils.dlpack.to_dlpack(tensor))
