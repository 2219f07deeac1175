"""Compile a release's model into packages that hold a whole request, if they pass the gate.

    export_release(model=model, tokenizer=tokenizer, users=real_users(rows, tokenizer, model.config), out=out)

Leaves in `out`: signature.json (inputs, limits, and of each package what it was built by), <device>.pt2 (AOTInductor:
a shared library and weights, with a dynamic batch) and parity.json, the verdict of the gate. A package that does not
pass is not there, and the signature says that the release is served eagerly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.onerec.program import INPUTS, ServingProgram, input_shapes
from models.onerec.ranking import MAX_BEAM
from models.training.checkpoint import Tokenizer
from serving.export.parity import answers, compare, reference

FOLDER, SIGNATURE, PARITY = "serving", "signature.json", "parity.json"
BEAM, MAX_BATCH = 128, 64
WORKSHOP, CACHE_DIR = Path("/tmp/onerec-compile"), "TORCHINDUCTOR_CACHE_DIR"
EXAMPLES = 2  # users of the example that is traced; a batch of one would be taken for a constant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """One compiled file and what it runs on."""

    file: str
    device: str
    beam: int
    torch: str
    target: str  # instruction set of the processor, or compute capability of the card


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs of a request (all int32, a batch first) and the limits it must keep."""

    inputs: dict[str, list[int]]
    max_batch: int
    max_beam: int
    packages: list[Package]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Signature:
        """ValueError when the file is not what `save` writes."""
        try:
            raw = json.loads(path.read_text())
            return cls(**raw | {"packages": [Package(**p) for p in raw["packages"]]})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no signature of this version ({error}); export the release again") from None


def signature(
    config: OneRecConfig, items: int, packages: Sequence[Package] = (), max_batch: int = MAX_BATCH
) -> Signature:
    """The signature of a model and catalogue."""
    limit = min(MAX_BEAM, items)
    return Signature(inputs=input_shapes(config), max_batch=max_batch, max_beam=limit, packages=list(packages))


def target_of(device: str) -> str:
    """What a compiled package depends on besides PyTorch's version."""
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def export_release(
    *,
    model: OneRec,
    tokenizer: Tokenizer,
    users: dict[str, Tensor],
    out: Path,
    devices: Sequence[str] = ("cpu",),
    beam: int = BEAM,
    max_batch: int = MAX_BATCH,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compile for each device, compare with the eager float32 model on `users`, keep what passes.

    Returns {device: verdict of the gate with `compile_seconds`, `bytes`, `eager_ms` and `package_ms` of one user};
    times stay out of the files, whose bytes make the release's id. The package for CUDA computes in bfloat16. Raises
    ValueError for a session-wise model or a beam outside 1..MAX_BEAM.
    """
    if not 1 <= beam <= MAX_BEAM:
        raise ValueError(f"beam is {beam}; export a width of 1 to {MAX_BEAM}")
    beam = min(beam, len(tokenizer.catalogue))
    wanted = reference(model, tokenizer, users, beam)
    packages, report, verdicts = [], {}, {}
    for device in devices:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            progress(f"{device}: no C++ compiler here, so nothing is exported; install g++ or set CXX")
            report[device] = {"passed": False, "reason": "no C++ compiler"}
            continue
        cuda = torch.device(device).type == "cuda"
        program = build_program(model, tokenizer, beam, device, half=cuda)
        path, begun = out / f"{torch.device(device).type}.pt2", time.monotonic()
        progress(f"compiling the request for {device}")
        compile_package(program, users, path, max_batch)
        seconds = round(time.monotonic() - begun, 1)
        run = load_package(path)

        def on_device(*inputs: Tensor, run: Callable = run, device: str = device) -> tuple[Tensor, ...]:
            return run(*(x.to(device) for x in inputs))

        verdict = compare(wanted, answers(on_device, users, beam))
        one = {name: t[:1] for name, t in users.items()}
        times = {
            "package_ms": _milliseconds(on_device, one, beam),
            "eager_ms": _milliseconds(program, one, beam, device),
        }
        report[device] = verdict | times | {"compile_seconds": seconds, "bytes": path.stat().st_size}
        verdicts[device] = verdict
        progress(
            f"{device}: top-1 equal {verdict['top1']:.4f}, top-{verdict['top_k']} overlap {verdict['overlap']:.4f} of"
            f" {verdict['users']} users; {times['package_ms']} ms instead of {times['eager_ms']} ms, compiled in"
            f" {seconds} s"
        )
        if verdict["passed"]:
            packages.append(
                Package(
                    file=path.name,
                    device=torch.device(device).type,
                    beam=beam,
                    torch=torch.__version__,
                    target=target_of(device),
                )
            )
        else:
            progress(f"{device}: not exported, the release is served eagerly there")
            path.unlink()
    signature(model.config, len(tokenizer.catalogue), packages, max_batch).save(out / SIGNATURE)
    (out / PARITY).write_text(json.dumps(verdicts, indent=1, sort_keys=True) + "\n")
    return report


def build_program(model: OneRec, tokenizer: Tokenizer, width: int, device: str, half: bool) -> ServingProgram:
    """The program on a device. In half precision it is of a model of its own: the caller's stays float32."""
    if half or torch.device(device).type != "cpu":
        own = OneRec(model.config, model.sid_NL[:-1].cpu())
        own.load_state_dict(model.state_dict())
        model = own.to(device)
    ids = torch.tensor(tokenizer.catalogue.item_ids, device=device)
    return ServingProgram(model, tokenizer.trie.to(device), ids, width, half)


def compile_package(program: ServingProgram, users: dict[str, Tensor], path: Path, max_batch: int) -> None:
    """Trace with a dynamic batch and compile; the traced program stays on the machine that made it.

    Always in the same folder: the compiler writes its path into what it makes, and the release's id follows the bytes.
    """
    device = program.get_buffer("key_N").device
    rows = torch.arange(EXAMPLES) % users["static"].shape[0]
    example = {name: t[rows].to(device) for name, t in users.items()}
    example["beam"] = torch.full((EXAMPLES,), program.width, dtype=torch.int32, device=device)
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    shapes = {name: {0: batch} for name in INPUTS}
    with _workshop(), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
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


def load_package(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """The compiled request. It is native code: load it only from a release whose manifest was verified.

    One thread runs it, and without the locks between threads a CUDA graph can capture it.
    """
    if torch.cuda.is_available():
        import models.onerec.inference_kernels  # noqa: F401  (operators that a package for CUDA calls)

    return torch._inductor.aoti_load_package(str(path), run_single_threaded=True)


def _milliseconds(run: Callable, one: dict[str, Tensor], beam: int, device: str = "cpu", repeats: int = 20) -> float:
    """Median time of one user, the first call left out."""
    inputs = [(one | {"beam": torch.full((1,), beam, dtype=torch.int32)})[name].to(device) for name in INPUTS]
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            run(*inputs)[0].cpu()
            times.append(time.perf_counter() - begun)
    return round(1e3 * sorted(times[1:])[repeats // 2], 2)
