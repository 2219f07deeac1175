"""Compile a release's model into packages that hold a whole request, if they pass the gate.

    export_release(model=model, tokenizer=tokenizer, users=real_users(rows, tokenizer, model.config), out=out)

Leaves in `out`: signature.json (inputs, limits, and of each package what it was built by), <device>.pt2 (AOTInductor:
a shared library and weights, with a dynamic batch) and parity.json, the verdict of the gate. A package that does not
pass is not there, and the signature says that the release is served eagerly.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs of a request (all int32, a batch first) and the limits it must keep.

    `precisions`: by kind of device, what the request passed the gate in; a package computes in it, and where there is
    none, the eager request.
    """

    inputs: dict[str, list[int]]
    max_batch: int
    max_beam: int
    packages: list[Package]
    precisions: dict[str, str] = dataclasses.field(default_factory=dict)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Signature:
        """ValueError when the file is not what `save` writes."""
        try:
            raw = json.loads(path.read_text())
            if unknown := set(raw.get("precisions", {}).values()) - {"bfloat16", "float16", "float32"}:
                raise TypeError(f"precision {min(unknown)}")
            return cls(**raw | {"packages": [Package(**p) for p in raw["packages"]]})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no signature of this version ({error}); export the release again") from None


def signature(
    config: OneRecConfig,
    items: int,
    packages: Sequence[Package] = (),
    max_batch: int = MAX_BATCH,
    precisions: Mapping[str, str] | None = None,
) -> Signature:
    """The signature of a model and catalogue."""
    return Signature(
        inputs=input_shapes(config),
        max_batch=max_batch,
        max_beam=min(MAX_BEAM, items),
        packages=list(packages),
        precisions=dict(precisions or {}),
    )


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

    For CUDA in the first precision of PRECISIONS that passes; one that fails uncompiled is not compiled, which takes
    minutes. Returns {device: verdict of the gate with `precision`, `compile_seconds`, `bytes`, `eager_ms` and
    `package_ms` of one user}, with a `reason` where there is no package; times stay out of the files, whose bytes make
    the release's id. Raises ValueError for a session-wise model or a beam outside 1..MAX_BEAM.
    """
    if not 1 <= beam <= MAX_BEAM:
        raise ValueError(f"beam is {beam}; export a width of 1 to {MAX_BEAM}")
    beam = min(beam, len(tokenizer.catalogue))
    wanted = reference(model, tokenizer, users, beam)
    packages, report, verdicts, precisions = [], {}, {}, {}
    for device in devices:
        kind, path = torch.device(device).type, out / f"{torch.device(device).type}.pt2"
        for precision in PRECISIONS[kind]:
            program = build_program(model, tokenizer, beam, device, getattr(torch, precision))
            verdict = _judged(program, device, users, wanted, beam) | {"precision": precision}
            progress(f"{device}: {precision}, {_told(verdict)}")
            if verdict["passed"]:
                precisions[kind] = precision
                break
        reason, times = "the gate", {}
        if verdict["passed"]:
            progress(f"compiling the request for {device} in {precision}")
            begun, reason = time.monotonic(), _compiled(program, users, path, max_batch)
        if verdict["passed"] and not reason:
            seconds, run, one = time.monotonic() - begun, load_package(path), {name: t[:1] for name, t in users.items()}
            verdict = _judged(run, device, users, wanted, beam) | {"precision": precision}
            times = {
                "package_ms": _milliseconds(run, one, beam, device),
                "eager_ms": _milliseconds(program, one, beam, device),
                "compile_seconds": round(seconds, 1),
                "bytes": path.stat().st_size,
            }
            progress(
                f"{device}: as a package {_told(verdict)}; {times['package_ms']} ms instead of {times['eager_ms']} ms,"
                f" compiled in {times['compile_seconds']} s"
            )
            reason = "" if verdict["passed"] else "the gate"
        report[device], verdicts[device] = verdict | times, verdict
        if reason:
            path.unlink(missing_ok=True)
            report[device] |= {"passed": False, "reason": reason}
            progress(f"{device}: not exported ({reason}), the release is served eagerly there")
            continue
        packages.append(
            Package(
                file=path.name,
                device=kind,
                beam=beam,
                torch=torch.__version__,
                target=target_of(device),
            )
        )
    signature(model.config, len(tokenizer.catalogue), packages, max_batch, precisions).save(out / SIGNATURE)
    (out / PARITY).write_text(json.dumps(verdicts, indent=1, sort_keys=True) + "\n")
    return report


def _judged(run: Callable, device: str, users: dict[str, Tensor], wanted: Ranked, beam: int) -> dict[str, Any]:
    """The gate's verdict on a program or package of a device."""

    def on_device(*inputs: Tensor) -> tuple[Tensor, ...]:
        return run(*(x.to(device) for x in inputs))

    return compare(wanted, answers(on_device, users, beam))


def _told(verdict: dict[str, Any]) -> str:
    return (
        f"top-1 equal {verdict['top1']:.4f}, top-{verdict['top_k']} overlap {verdict['overlap']:.4f} of"
        f" {verdict['users']} users"
    )


def _compiled(program: ServingProgram, users: dict[str, Tensor], path: Path, max_batch: int) -> str:
    """Compile into `path`. Why there is no package that can be loaded, or nothing when there is."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler here; install g++ or set CXX"
    compile_package(program, users, path, max_batch)
    return why_not(path)


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


def _milliseconds(run: Callable, one: dict[str, Tensor], beam: int, device: str, repeats: int = 20) -> float:
    """Median time of one user, the first call left out."""
    inputs = [(one | {"beam": torch.full((1,), beam, dtype=torch.int32)})[name].to(device) for name in INPUTS]
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            run(*inputs)[0].cpu()
            times.append(time.perf_counter() - begun)
    return round(1e3 * sorted(times[1:])[repeats // 2], 2)
