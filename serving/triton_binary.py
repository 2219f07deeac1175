"""The Triton server of the nvidia-pytriton wheel: where it lies, and what it needs to run its Python backend.

Four things must hold or the backend fails, and are arranged here: the folder of the running libpython first in
LD_LIBRARY_PATH and the wheel's own libraries behind it, this environment's bin first in PATH, no PYTHONPATH, and a
backend folder of our own that holds the stub of this Python version.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

_LIBC = ctypes.CDLL(None)  # loaded before any fork
_PR_SET_PDEATHSIG = 1


def wheel_folder() -> Path:
    """Folder of the wheel's server. Raises ValueError where the wheel is not installed."""
    folder = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver"
    if not (folder / "bin" / "tritonserver").is_file():
        raise ValueError(f"{folder} holds no tritonserver: run `make setup` (it installs the nvidia-pytriton wheel)")
    return folder


def copy_backends(wheel: Path, target: Path) -> None:
    """The wheel's backends into `target`, with the Python backend's stub for this interpreter's version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(wheel / "backends", target, dirs_exist_ok=True)
    shutil.copy2(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", target / "python")
    (target / "python" / "triton_python_backend_stub").chmod(0o755)


def environment() -> dict[str, str]:
    """This process's environment, changed so that the server finds libpython and its own libraries."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # The stub's own search path points beside the wheel, and we run a copy of it from elsewhere.
    bundled = Path(sysconfig.get_path("purelib")) / "nvidia_pytriton.libs"
    libraries = [sysconfig.get_config_var("LIBDIR"), str(bundled), os.environ.get("LD_LIBRARY_PATH", "")]
    variables["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return variables


def die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, so that a killed run leaves no server behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
