"""The model of a release as it is served: the compiled package where it fits this machine, else the same request eager.

    program = Program.load(release, device="cpu")
    program.warm_up()                                             # every shape once; on CUDA all graphs, then frozen
    items_BK, scores_BK, sids_BKL = program(tensors, beam=128, top_k=10)
    program.describe()                                            # which of the two answers, and why

`tensors`: int32 arrays as of `models.onerec.program.input_shapes` without `beam`. On CUDA a request is padded to the
next batch bucket and replayed from a graph; none is captured after the warm-up, and `captures` proves it.

Legend: B users, K items, L levels of a semantic ID.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.onerec.model import OneRec
from models.onerec.program import INPUTS, NOTHING, ServingProgram
from models.onerec.ranking import rank_items
from models.reward.pscore import PScore
from models.training.checkpoint import Tokenizer, load_model
from models.training.data import PATHWAYS
from serving.export.graphs import CudaRecorder, Graphs
from serving.export.loading import load_package
from serving.export.package import BEAM, FOLDER, SIGNATURE, Signature, build_program, signature, target_of

Request = Callable[..., tuple[Tensor, ...]]


class Program:
    """Tokenizer, model and (where the release has one) reward model that belong together. One thread at a time."""

    def __init__(
        self,
        model: OneRec,
        tokenizer: Tokenizer,
        p_score: PScore | None,
        device: str,
        limits: Signature,
        package: Path | None = None,
        package_beam: int = 0,
        reason: str = "",
    ) -> None:
        self.model, self.tokenizer, self.device = model.eval(), tokenizer, torch.device(device)
        self.p_score = p_score.eval().to(device) if p_score else None
        self.signature, self.reason, self.kind = limits, reason, "package" if package else "eager"
        self.max_beam, self.cuda = limits.max_beam, self.device.type == "cuda"
        self._widths: dict[int, Request] = {}
        widths = {min(BEAM, self.max_beam), self.max_beam} - ({package_beam} if package else set())
        if model.config.session_items > 1:
            model.to(device)
            self._widths[self.max_beam] = self._ranked
        elif widths:
            dtype = getattr(torch, limits.precisions.get(self.device.type, "float32"))  # what passed the gate
            program = build_program(model, tokenizer, max(widths), device, dtype)
            self._widths = {width: program.at_width(width) for width in sorted(widths)}
        if package is not None:
            self._widths[package_beam] = load_package(package)
        replayed = self.cuda and model.config.session_items == 1
        self.graphs = {w: Graphs(run, CudaRecorder()) for w, run in self._widths.items()} if replayed else {}

    @classmethod
    def load(cls, release: Path, device: str = "cpu") -> Program:
        """Of a verified release directory. ValueError when its parts do not belong together."""
        tokenizer = Tokenizer.load(release / "tokenizer")
        p_score = PScore.load(release / "reward", tokenizer) if (release / "reward").is_dir() else None
        model = load_model(release / "model", tokenizer)
        folder, kind = release / FOLDER, torch.device(device).type
        limits = signature(model.config, len(tokenizer.catalogue))
        if model.config.session_items > 1:
            return cls(model, tokenizer, p_score, device, limits, reason="session-wise models are not exported")
        if not (folder / SIGNATURE).is_file():
            return cls(model, tokenizer, p_score, device, limits, reason="the release holds no exported program")
        written = Signature.load(folder / SIGNATURE)
        if written.inputs != limits.inputs or written.max_beam != limits.max_beam:
            raise ValueError(f"{folder / SIGNATURE} is of another model or catalogue; publish the release again")
        found = next((p for p in written.packages if p.device == kind), None)
        if found is None:
            return cls(model, tokenizer, p_score, device, written, reason=f"no package for {kind} passed the gate")
        for name, built, here in (
            ("PyTorch", found.torch, torch.__version__),
            ("target", found.target, target_of(device)),
        ):
            if built != here:
                reason = f"the package was built for {name} {built}, this machine has {here}"
                return cls(model, tokenizer, p_score, device, written, reason=reason)
        return cls(model, tokenizer, p_score, device, written, folder / found.file, found.beam)

    @property
    def captures(self) -> int:
        """CUDA graphs made so far."""
        return sum(g.captures for g in self.graphs.values())

    def describe(self) -> dict[str, object]:
        """What is loaded and why, for the server's log and its tests: exported or eager, device, limits, graphs."""
        frozen = bool(self.graphs) and all(g.frozen for g in self.graphs.values())
        return {
            "kind": self.kind,
            "reason": self.reason,
            "device": str(self.device),
            "reward": self.p_score is not None,
            "captures": self.captures,
            "frozen": frozen,
            "max_batch": self.signature.max_batch,
            "max_beam": self.max_beam,
        }

    @torch.no_grad()
    def warm_up(self) -> None:
        """Run every batch and beam bucket once on empty histories; on CUDA capture its graph, then freeze."""
        for width in self._widths:
            for size in self.buckets if self.graphs else [1]:
                shapes = {n: s for n, s in self.signature.inputs.items() if n != "beam"}
                zeros = {n: torch.zeros(size, *s, dtype=torch.int32) for n, s in shapes.items()}
                self(zeros, beam=width, top_k=1)
        for graphs in self.graphs.values():
            graphs.freeze()

    @property
    def buckets(self) -> list[int]:
        """Batch sizes that have a graph: powers of two, and the largest batch."""
        powers = [1 << i for i in range(self.signature.max_batch.bit_length())]
        return sorted({b for b in powers if b < self.signature.max_batch} | {self.signature.max_batch})

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, Tensor], beam: int | Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Items int64 [B, K], scores float32 [B, K] and codes int32 [B, K, L] on the CPU, best first.

        `beam` is one for all or one a request, int [B]. Where a beam holds fewer legal items than K: item -1, score
        -inf, codes -1. Raises ValueError naming a tensor, beam or K that the signature does not allow.
        """
        size = self._checked(tensors)
        beam_B = torch.as_tensor(beam, dtype=torch.int32).expand(size).contiguous()
        widest = int(beam_B.max())
        if int(beam_B.min()) < 1 or widest > self.max_beam:
            raise ValueError(f"beam is {beam_B.tolist()}; it must lie in 1..{self.max_beam}")
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; ask for at least 1 item")
        width = min(w for w in self._widths if w >= widest)
        inputs = [beam_B if name == "beam" else tensors[name] for name in INPUTS]
        if self.graphs:
            bucket = min(b for b in self.buckets if b >= size)
            inputs = [torch.cat([x, x[:1].expand(bucket - size, *x.shape[1:])]).to(self.device) for x in inputs]
            found = self.graphs[width](bucket, inputs)
        else:
            run = self._widths[width]
            # Without graphs an eager program need not be wider than what is asked for.
            found = (run.at_width(widest) if isinstance(run, ServingProgram) else run)(*inputs)
        items, scores, sids = (x[:size, :top_k].cpu() for x in found)
        if (missing := top_k - items.shape[1]) > 0:
            items = torch.nn.functional.pad(items, (0, missing), value=-1)
            scores = torch.nn.functional.pad(scores, (0, missing), value=float("-inf"))
            sids = torch.nn.functional.pad(sids, (0, 0, 0, missing), value=-1)
        return items, scores, sids

    @torch.inference_mode()
    def reward(self, tensors: Mapping[str, Tensor], items_BK: np.ndarray) -> np.ndarray:
        """P-Score of each item [B, K], -inf for item -1. ValueError when the release has no reward model."""
        if self.p_score is None:
            raise ValueError("this release has no reward model to order by; ask without it")
        index = self.tokenizer.catalogue.index(items_BK.ravel()).reshape(items_BK.shape)
        score = self.p_score.score(self._batch(tensors), torch.from_numpy(index).to(self.device)).float().cpu().numpy()
        return np.where(items_BK >= 0, score, -np.inf).astype(np.float32)

    def _ranked(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The request of a session-wise model, which has no program of fixed shapes: `rank_items`, beam by beam."""
        tensors, ids = dict(zip(INPUTS, inputs)), torch.from_numpy(self.tokenizer.catalogue.item_ids)
        size, width, levels = len(tensors["static"]), self.max_beam, self.model.config.levels
        items, scores = torch.full((size, width), NOTHING), torch.full((size, width), float("-inf"))
        sids = torch.full((size, width, levels), NOTHING, dtype=torch.int32)
        for beam in tensors["beam"].unique().tolist():
            rows = torch.nonzero(tensors["beam"] == beam)[:, 0]
            batch = self._batch({name: t[rows] for name, t in tensors.items()})
            index, score, codes = (t.cpu() for t in rank_items(self.model, batch, self.tokenizer.trie, beam))
            legal = score.isfinite()
            items[rows, : index.shape[1]] = torch.where(legal, ids[index.clamp_min(0)], NOTHING)
            scores[rows, : index.shape[1]] = score.float()
            sids[rows, : index.shape[1]] = torch.where(legal[..., None], codes, NOTHING).int()
        return items, scores, sids

    def _batch(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a request as the models take them."""
        batch = {"static": tensors["static"].long().to(self.device)}
        for i, name in enumerate(PATHWAYS):
            events = tensors[name].long().to(self.device)
            place = torch.arange(events.shape[1], device=self.device)
            lengths = tensors["lengths"][:, i : i + 1].to(self.device)
            batch[name], batch[f"{name}_mask"] = events, place >= events.shape[1] - lengths
        return batch

    def _checked(self, tensors: Mapping[str, Tensor]) -> int:
        """The batch's size. A compiled program does not check its inputs; a wrong shape would read foreign memory."""
        wanted = {n: s for n, s in self.signature.inputs.items() if n != "beam"}
        if missing := sorted(set(wanted) - set(tensors)):
            raise ValueError(f"tensors {missing} are missing; give {sorted(wanted)}")
        size = tensors["static"].shape[0]
        if not 1 <= size <= self.signature.max_batch:
            raise ValueError(f"the batch has {size} users; give 1 to {self.signature.max_batch}")
        for name, shape in wanted.items():
            t = tensors[name]
            if list(t.shape) != [size, *shape] or t.dtype != torch.int32:
                raise ValueError(f"{name} is {t.dtype} {list(t.shape)}; it must be int32 {[size, *shape]}")
        return size
