"""The Triton model of benchmarks/serving/gpu_server.py: the served `onerec`, on random weights instead of a release's.

Only the loading differs: batching, checks, graphs and answers are serving/model_repository/onerec/1/model.py.
"""

from __future__ import annotations

import importlib.util
import json
import locale
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import serving.export.program
from benchmarks.serving.gpu_program import build
from models.onerec.features import Catalogue
from models.onerec.loop_barrier import loop_barriers
from models.tokenizer.trie import Trie
from models.training.checkpoint import Tokenizer
from serving.export.graphs import CudaRecorder, Graphs
from serving.export.package import signature
from serving.export.program import Program
from serving.repository import TEMPLATES

locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # the backend starts in C's, and the compiler's own files are UTF-8

_spec = importlib.util.spec_from_file_location("onerec_model", TEMPLATES / "onerec" / "1" / "model.py")
assert _spec is not None and _spec.loader is not None
_served = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_served)


def compiled(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Compiled at its first call of each batch size, with the barriers that PyTorch leaves out."""
    inner = torch.compile(run, dynamic=False)

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        with loop_barriers():
            return inner(*inputs)

    return call


class Sized(Program):
    """Graphs of some batch sizes only: compiling takes half a minute each."""

    sizes: tuple[int, ...] = ()

    @property
    def buckets(self) -> list[int]:
        return sorted({*self.sizes, self.signature.max_batch}, reverse=True)  # the first takes longest


class TritonPythonModel(_served.TritonPythonModel):  # type: ignore[name-defined]
    def _load(self, folder: Path, device: str) -> Program:
        """The program that `settings.json` describes: compiled here, or the package that it names."""
        settings = json.loads((folder / "settings.json").read_text())
        args = Namespace(**settings | {"device": torch.device(device).type, "kernels": True})
        made = build(args)
        sid_NL = made.model.sid_NL[:-1].cpu().numpy()
        trie = Trie.build(sid_NL, made.codebook_size)
        tokenizer = Tokenizer(Catalogue(np.arange(args.items)), sid_NL, trie, made.codebook_size)
        limits = signature(made.model.config, args.items, max_batch=args.max_batch)
        package = Path(args.package) if args.package else None
        # The program is in bfloat16 on the device already; a copy by way of the processor takes half a minute.
        serving.export.program.build_program = lambda *_, **__: made
        Sized.sizes = tuple(args.sizes)
        program = Sized(made.model, tokenizer, None, device, limits, package, args.beam if package else 0)
        # Requests of this benchmark are all of one width; the others' graphs would only take start-up time.
        run = program._widths.get(args.beam) or program._widths[program.max_beam].at_width(args.beam)
        if package is None and args.compiled:
            run = compiled(run)
        program._widths = {args.beam: run}
        if program.graphs:
            program.graphs = {args.beam: Graphs(run, CudaRecorder())}
        return program
