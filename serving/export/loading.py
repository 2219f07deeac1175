"""Load a compiled package: native code, so the first time in a process of its own, which it may end.

    if reason := why_not(path): ...      # tried once, after compiling
    run = load_package(path)

A compiler that does not belong to the C++ library of this system (CXX set to another GCC, say) makes packages whose
first std::regex is a segmentation fault. A training day must not die of that: it is told, and serves eagerly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_TRY = """
import contextlib, sys
from pathlib import Path
from serving.export.loading import load_package
with contextlib.suppress(Exception):  # the caller meets it again, and reads it
    load_package(Path(sys.argv[1]))
"""


def load_package(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """The compiled request. It is native code: load it only from a release whose manifest was verified.

    One thread runs it, and without the locks between threads a CUDA graph can capture it.
    """
    if torch.cuda.is_available():  # operators that a package for CUDA calls
        import models.onerec.grouped_kernel
        import models.onerec.inference_kernels
    import models.onerec.moe  # noqa: F401  (on any device)

    return torch._inductor.aoti_load_package(str(path), run_single_threaded=True)


def why_not(path: Path) -> str:
    """Why a process that loads the package ends, or nothing when it does not. What it raises is no part of this."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    command = [sys.executable, "-c", _TRY, str(path)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    if ended >= 0:
        return ""
    told = f"the process that loads the package is ended by {signal.Signals(-ended).name}"
    if ended != -signal.SIGSEGV:
        return told
    compiler = os.environ.get("CXX", "g++")
    return f"{told}; {compiler} may not fit this system's C++ library: set CXX to its own, /usr/bin/g++"
