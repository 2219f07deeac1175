"""Alignment: the item encoder learns that paired items are close, and still tells their captions (TR section 2.1).

    encoder = align(inputs, pairs, AlignmentConfig(), seed=0, folder=Path("alignment"))

Loss: in-batch contrastive, one-directional (TR), sim the cosine of the flattened 4 x D matrices, plus `caption_weight`
times the caption loss. A batch is a function of (seed, step) alone, so that a run goes on from its last checkpoint
(`folder`, found by the digest of everything that decides the result) to the same bytes. Weights are safetensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.tokenizer.captions import CaptionDecoder, caption_ids
from models.tokenizer.content.encoder import Tokens
from models.tokenizer.content.items import ItemContent, hashed
from models.tokenizer.qformer import ItemEncoder, ItemEncoderConfig, TokenBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """`author_dropout`: share of training items whose author is hidden, so that items of new authors do well too.
    `caption_model`: hub name or path of a LLaMA-class decoder, "" for a small one. `longest`: most content tokens.
    Tags and authors learn at `embedding_rate`: a row sees a gradient only when its items are drawn."""

    encoder: ItemEncoderConfig = dataclasses.field(default_factory=ItemEncoderConfig)
    temperature: float = 0.07
    caption_weight: float = 0.1
    caption_model: str = ""
    author_dropout: float = 0.3
    batch: int = 512
    steps: int = 1000
    learning_rate: float = 1e-3
    embedding_rate: float = 1e-2
    warmup: int = 50
    longest: int = 1280
    save_every: int = 200

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.steps < 1 or self.batch < 2:
            raise ValueError(
                f"temperature {self.temperature} must be positive, steps {self.steps} at least 1, batch {self.batch} "
                "at least 2 (the others of a batch are what an item is told apart from)"
            )


@dataclasses.dataclass
class ItemInputs:
    """The catalogue as the encoder reads it: content tokens (None without any), hashed tags, authors, caption ids."""

    tokens: Tokens | None
    tags: np.ndarray
    author: np.ndarray
    captions: np.ndarray | None = None

    @classmethod
    def of(cls, items: list[ItemContent], tokens: Tokens | None, config: ItemEncoderConfig) -> ItemInputs:
        """What encoding needs: everything but the captions' ids."""
        return cls(tokens, *hashed(items, config.tag_buckets, config.author_buckets))

    @classmethod
    def to_align(cls, items: list[ItemContent], tokens: Tokens | None, config: AlignmentConfig) -> ItemInputs:
        """What `align` needs: with the captions' ids, if the caption loss weighs and there is any caption."""
        captions = [i.caption for i in items]
        ids = caption_ids(captions, config.caption_model) if config.caption_weight and any(captions) else None
        return dataclasses.replace(cls.of(items, tokens, config.encoder), captions=ids)

    def batch(self, rows: np.ndarray, longest: int, device: str = "cpu") -> TokenBatch:
        if self.tokens is None:
            content, mask = torch.zeros(len(rows), 0, 0), torch.zeros(len(rows), 0, dtype=torch.bool)
        else:
            content, mask = self.tokens.padded(rows, longest)
        tags = self.tags[rows]
        tags = tags[:, : max(1, int((tags >= 0).sum(1).max(initial=0)))]
        parts = (content, mask, torch.from_numpy(tags), torch.from_numpy(self.author[rows]))
        content, mask, tags, author = (p.to(device) for p in parts)
        return TokenBatch(content.float(), mask, tags, author)


def contrastive_loss(anchor_BD: Tensor, positive_BD: Tensor, i_B: Tensor, j_B: Tensor, temperature: float) -> Tensor:
    """TR's L_I2I: -mean log softmax of each anchor's own positive among the batch's. Inputs are unit vectors.

    The batch's positives count once each: a repeat of j elsewhere is no negative of it, and neither is item i itself.
    """
    logits = anchor_BD @ positive_BD.T / temperature
    same = (j_B[None] == j_B[:, None]) | (j_B[None] == i_B[:, None])
    same.fill_diagonal_(False)
    for_duplicates = logits.masked_fill(same, -torch.inf)
    return torch.nn.functional.cross_entropy(for_duplicates, torch.arange(len(logits), device=logits.device))


def align(
    inputs: ItemInputs,
    pairs: np.ndarray,
    config: AlignmentConfig,
    *,
    seed: int,
    folder: Path | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] = print,
) -> ItemEncoder:
    """Train on pairs [P, 2] of rows of `inputs`; returns the frozen encoder. With `folder` a killed run goes on."""
    if not len(pairs):
        raise ValueError(
            "no item pairs to align with: the log has no user with two positives; use the svd representation"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ItemEncoder(config.encoder).to(device)
        decoder, ids = None, inputs.captions if config.caption_weight else None
        if ids is not None:
            decoder = CaptionDecoder(
                dim=config.encoder.dim, vocabulary=int(ids.max()) + 1, name=config.caption_model
            ).to(device)
    rows = np.unique(pairs)
    encoder.learn_of(torch.from_numpy(inputs.tags[rows]).to(device), torch.from_numpy(inputs.author[rows]).to(device))
    modules = {"encoder": encoder, **({"decoder": decoder} if decoder else {})}
    trained = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}
    tables = [encoder.tag.weight, encoder.author.weight]
    others = [p for p in trained.values() if not any(p is t for t in tables)]
    rates = ((others, config.learning_rate, 0.01), (tables, config.embedding_rate, 0.0))
    groups = [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for p, rate, decay in rates]
    optimizer = torch.optim.AdamW(groups)
    checkpoint = _Checkpoint(folder, _digest(inputs, pairs, config, seed), trained, optimizer) if folder else None
    begin = checkpoint.load() if checkpoint else 0
    if begin:
        progress(f"alignment goes on from step {begin}")
    said, since = time.monotonic(), begin
    for step in range(begin, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(step, config)
        rng = np.random.default_rng((seed, step))
        chosen = pairs[rng.integers(0, len(pairs), config.batch)]
        both = inputs.batch(chosen.T.reshape(-1), config.longest, device)
        hidden = torch.from_numpy(rng.random(2 * config.batch) < config.author_dropout).to(device)
        both.author_B = both.author_B.masked_fill(hidden, -1)
        queries = encoder(both)
        unit = torch.nn.functional.normalize(queries.flatten(1), dim=-1)
        i, j = torch.from_numpy(chosen).to(device).unbind(1)
        close = contrastive_loss(unit[: config.batch], unit[config.batch :], i, j, config.temperature)
        loss, line = close, f"contrastive {close.item():.3f}"
        if decoder is not None and ids is not None:
            told = decoder(queries[: config.batch], torch.from_numpy(ids[chosen[:, 0]]).to(device))
            loss, line = close + config.caption_weight * told, line + f", caption {told.item():.3f}"
        if not torch.isfinite(loss):
            raise ValueError(f"alignment: the loss is {loss.item()} at step {step}; lower learning_rate ({line})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        done = step + 1
        if checkpoint and (done % config.save_every == 0 or done == config.steps):
            checkpoint.save(done)
        if time.monotonic() - said > 3 or done == config.steps:
            rate = (done - since) * config.batch / max(time.monotonic() - said, 1e-9)
            progress(f"alignment step {done}/{config.steps}: {line}, {rate:,.0f} pairs/s")
            said, since = time.monotonic(), done
    return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def aligned_vectors(
    encoder: ItemEncoder, inputs: ItemInputs, *, longest: int = 1280, batch: int = 512, device: str = "cpu"
) -> np.ndarray:
    """Unit vectors [N, Q * D] float32 of all items."""
    n, width = len(inputs.author), encoder.config.queries * encoder.config.dim
    out = np.empty((n, width), np.float32)
    for begin in range(0, n, batch):
        rows = np.arange(begin, min(begin + batch, n))
        out[rows] = encoder.vectors(inputs.batch(rows, longest, device)).float().cpu().numpy()
    return out


def _schedule(step: int, config: AlignmentConfig) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return warm * (0.55 + 0.45 * math.cos(math.pi * step / config.steps))


def _digest(inputs: ItemInputs, pairs: np.ndarray, config: AlignmentConfig, seed: int) -> str:
    settings = dataclasses.asdict(dataclasses.replace(config, save_every=0))
    h = hashlib.sha256(json.dumps([settings, seed]).encode())
    tokens = [] if inputs.tokens is None else [inputs.tokens.values, inputs.tokens.offsets]
    captions = [] if inputs.captions is None else [inputs.captions]
    for array in (pairs, inputs.tags, inputs.author, *tokens, *captions):
        h.update(np.ascontiguousarray(array).data)
    return h.hexdigest()


_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclasses.dataclass
class _Checkpoint:
    """checkpoint.safetensors in `folder`: parameters, Adam moments, step and digest."""

    folder: Path
    digest: str
    trained: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer

    @property
    def file(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def save(self, step: int) -> None:
        tensors: dict[str, Tensor] = {}
        for name, p in self.trained.items():
            tensors[f"parameter.{name}"] = p.detach()
            state = self.optimizer.state.get(p, {})  # empty until the parameter's first gradient
            tensors |= {f"{key}.{name}": value for key, value in state.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        contiguous = {k: v.cpu().contiguous() for k, v in tensors.items()}
        save_file(contiguous, temporary, metadata={"step": str(step), "digest": self.digest})
        os.replace(temporary, self.file)

    @torch.no_grad()
    def load(self) -> int:
        """Steps done; 0 if there is no checkpoint of this run."""
        if not self.file.exists():
            return 0
        with safe_open(self.file, "pt") as f:
            about = f.metadata()
            if about.get("digest") != self.digest:
                return 0
            kept = set(f.keys())
            for name, p in self.trained.items():
                p.copy_(f.get_tensor(f"parameter.{name}"))
                state = {k: f.get_tensor(f"{k}.{name}") for k in _MOMENTS if f"{k}.{name}" in kept}
                if state:
                    self.optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in state.items()}
        return int(about["step"])
