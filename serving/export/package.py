"""Compile a release's model into packages that hold a whole request, if they pass the gate.

    export_release(model=model, tokenizer=tokenizer, users=real_users(rows, tokenizer, model.config), out=out)

Leaves in `out`: signature.json (inputs, limits, and of each package what it was built by), <device>.pt2 (AOTInductor:
a shared library and weights, with a dynamic batch) and parity.json, the verdict of the gate. A package that does not
pass is not there, and the signature says that the release is served eagerly.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.onerec.program import INPUTS, ServingProgram, input_shapes
from models.onerec.ranking import MAX_BEAM
from models.training.checkpoint import Tokenizer
from serving.export.compiling import compile_package
from serving.export.loading import load_package, why_not
from serving.export.parity import Ranked, answers, compare, reference

FOLDER, SIGNATURE, PARITY = "serving", "signature.json", "parity.json"
BEAM, MAX_BATCH = 128, 64
# Of each kind of device, fastest first. Of a hundred first items bfloat16 changes one, float16 fewer than half of one
# (docs/decisions/serving.md).
PRECISIONS = {"cpu": ("float32",), "cuda": ("bfloat16", "float16", "float32")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """One compiled file and what it runs on."""

    file: str
    device: str
    beam: int
    torch: str
    target: str  # instruction set of the processor, or compute capability of the card
    precision: str = "float32"


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

    For CUDA in the first precision of PRECISIONS that passes. Returns {device: verdict of the gate with `precision`,
    `compile_seconds`, `bytes`, `eager_ms` and `package_ms` of one user}, or a `reason` where there is no package; times
    stay out of the files, whose bytes make the release's id. Raises ValueError for a session-wise model or a beam
    outside 1..MAX_BEAM.
    """
    if not 1 <= beam <= MAX_BEAM:
        raise ValueError(f"beam is {beam}; export a width of 1 to {MAX_BEAM}")
    beam = min(beam, len(tokenizer.catalogue))
    wanted = reference(model, tokenizer, users, beam)
    packages, report, verdicts = [], {}, {}
    for device in devices:
        kind = torch.device(device).type
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            progress(f"{device}: no C++ compiler here, so nothing is exported; install g++ or set CXX")
            report[device] = {"passed": False, "reason": "no C++ compiler"}
            continue
        for precision in PRECISIONS[kind]:
            program = build_program(model, tokenizer, beam, device, getattr(torch, precision))
            path, say = out / f"{kind}.pt2", functools.partial(_said, progress, device)
            verdict, times = _gated(program, users, wanted, path, max_batch, say)
            if verdict["passed"] or "reason" in verdict:
                break
        report[device] = verdict | times
        if "reason" not in verdict:
            verdicts[device] = verdict
        if not verdict["passed"]:
            progress(f"{device}: not exported, the release is served eagerly there")
            continue
        packages.append(
            Package(
                file=path.name,
                device=kind,
                beam=beam,
                torch=torch.__version__,
                target=target_of(device),
                precision=precision,
            )
        )
    signature(model.config, len(tokenizer.catalogue), packages, max_batch).save(out / SIGNATURE)
    (out / PARITY).write_text(json.dumps(verdicts, indent=1, sort_keys=True) + "\n")
    return report


def _said(progress: Callable[[str], None], device: str, line: str) -> None:
    progress(f"{device}: {line}")


def _gated(
    program: ServingProgram,
    users: dict[str, Tensor],
    wanted: Ranked,
    path: Path,
    max_batch: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gate's verdict on a program, and what is measured of it. `path` is its package if that passed.

    A program that fails as it is, uncompiled, is not compiled: minutes for the same verdict.
    """
    device, beam, begun = program.get_buffer("key_N").device, program.width, time.monotonic()
    precision = str(program.model.bos_D.dtype).removeprefix("torch.")

    def judged(run: Callable) -> dict[str, Any]:
        def on_device(*inputs: Tensor) -> tuple[Tensor, ...]:
            return run(*(x.to(device) for x in inputs))

        return compare(wanted, answers(on_device, users, beam)) | {"precision": precision}

    def line(verdict: dict[str, Any]) -> str:
        return (
            f"{precision}, top-1 equal {verdict['top1']:.4f}, top-{verdict['top_k']} overlap {verdict['overlap']:.4f}"
            f" of {verdict['users']} users"
        )

    if not (verdict := judged(program))["passed"]:
        progress(f"{line(verdict)}: not compiled")
        return verdict, {}
    progress(f"compiling the request in {precision}")
    compile_package(program, users, path, max_batch)
    seconds = round(time.monotonic() - begun, 1)
    if reason := why_not(path):
        path.unlink()
        progress(reason)
        return {"passed": False, "reason": reason}, {}
    run = load_package(path)
    verdict, one = judged(run), {name: t[:1] for name, t in users.items()}
    times = {f"{name}_ms": _milliseconds(f, one, beam, device) for name, f in (("package", run), ("eager", program))}
    progress(f"{line(verdict)}; {times['package_ms']} ms instead of {times['eager_ms']} ms, compiled in {seconds} s")
    times |= {"compile_seconds": seconds, "bytes": path.stat().st_size}
    if not verdict["passed"]:
        path.unlink()
    return verdict, times


def build_program(
    model: OneRec, tokenizer: Tokenizer, width: int, device: str, dtype: torch.dtype = torch.float32
) -> ServingProgram:
    """The program on a device. In half precision it is of a model of its own: the caller's stays float32."""
    if dtype != torch.float32 or torch.device(device).type != "cpu":
        own = OneRec(model.config, model.sid_NL[:-1].cpu())
        own.load_state_dict(model.state_dict())
        model = own.to(device)
    ids = torch.tensor(tokenizer.catalogue.item_ids, device=device)
    return ServingProgram(model, tokenizer.trie.to(device), ids, width, dtype)


def _milliseconds(run: Callable, one: dict[str, Tensor], beam: int, device: torch.device, repeats: int = 20) -> float:
    """Median time of one user, the first call left out."""
    inputs = [(one | {"beam": torch.full((1,), beam, dtype=torch.int32)})[name].to(device) for name in INPUTS]
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            run(*inputs)[0].cpu()
            times.append(time.perf_counter() - begun)
    return round(1e3 * sorted(times[1:])[repeats // 2], 2)
