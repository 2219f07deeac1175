"""Trace a request and compile it into one file, the same bytes from the same program on the same machine.

compile_package(program, users, Path("cuda.pt2"), max_batch=64)
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from models.onerec.loop_barrier import loop_barriers
from models.onerec.program import INPUTS, ServingProgram

WORKSHOP, CACHE_DIR = Path("/tmp/onerec-compile"), "TORCHINDUCTOR_CACHE_DIR"
EXAMPLES = 2  # users of the example that is traced; a batch of one would be taken for a constant
LEAST_BATCH = 8  # the compiler takes a batch for two or more: of a range that ends at two it would make the constant 2


def compile_package(program: ServingProgram, users: dict[str, Tensor], path: Path, max_batch: int) -> None:
    """Trace with a dynamic batch and compile; the traced program stays on the machine that made it.

    Always in the same folder: the compiler writes its path into what it makes, and the release's id follows the bytes.
    """
    device = program.get_buffer("key_N").device
    rows = torch.arange(EXAMPLES) % users["static"].shape[0]
    example = {name: t[rows].to(device) for name, t in users.items()}
    example["beam"] = torch.full((EXAMPLES,), program.width, dtype=torch.int32, device=device)
    batch = torch.export.Dim("batch", min=1, max=max(max_batch, LEAST_BATCH))
    shapes = {name: {0: batch} for name in INPUTS}
    waits = loop_barriers() if device.type == "cuda" else contextlib.nullcontext()
    with _workshop(), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()), waits:
        traced = torch.export.export(program, tuple(example[name] for name in INPUTS), dynamic_shapes=shapes)
        # Precompiled headers lie in a folder named by the user, and the compiler's command stands in the package.
        with torch._inductor.config.patch({"aot_inductor.precompile_headers": False}):
            torch._inductor.aoti_compile_and_package(traced, package_path=str(path))


@contextlib.contextmanager
def _workshop() -> Iterator[None]:
    """An empty WORKSHOP as the compiler's folder, one process at a time.

    Where it is another user's, or open to others, a folder of our own: nobody else may write code that a release then
    holds, and a package with other bytes is better than none.
    """
    WORKSHOP.mkdir(mode=0o700, exist_ok=True)
    about = WORKSHOP.lstat()
    ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022
    with tempfile.TemporaryDirectory(prefix="onerec-compile-") as private:
        folder, before = WORKSHOP if ours else Path(private), os.environ.get(CACHE_DIR)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            os.environ[CACHE_DIR] = str(folder / "cache")
            yield
        finally:
            if before is None:
                os.environ.pop(CACHE_DIR, None)
            else:
                os.environ[CACHE_DIR] = before
            shutil.rmtree(folder / "cache", ignore_errors=True)
            os.close(lock)
