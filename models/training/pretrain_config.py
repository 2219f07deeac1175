"""The knobs of pre-training, as `python -m models.training.pretrain --config` and pipelines set them."""

from __future__ import annotations

import argparse
import dataclasses
import json

from models.training.data import INPUTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Knobs of pre-training. Learning rates: sparse = embedding tables, dense = the rest."""

    min_steps: int = 480  # at bootstrap: a small log is passed over several times,
    max_epochs: int = 30  # but a tiny one not for ever
    batch_size: int = 128  # rows of a micro-batch; a step has batch_size * accumulate * processes
    accumulate: int = 1
    max_targets: int = 8
    lr_sparse: float = 3e-3
    lr_dense: float = 1.5e-3
    lr_daily_scale: float = 0.3  # of a later day's rates; measured over a week: docs/decisions/model.md
    lr_refit_scale: float = 1.0  # on the day of a refit of the tokenizer: codes have moved, less would not follow
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    clip_norm: float = 1.0
    item_loss_weight: float = 1.0
    shown_loss_weight: float = 0.3  # of an item that was shown and not liked, in the item head's loss; a positive has 1
    max_others: int = 16  # such items of a row, the newest
    event_loss_weight: float = 0.25  # of each short event's next item; for a model with an event head
    balance_loss: float = 0.0  # weight of an auxiliary loss, for comparison: experts are balanced without one
    half_life_days: float = 4.0
    min_weight: float = 0.15
    inputs: tuple[str, ...] = INPUTS  # fewer for an ablation
    pool_rows: int = 32_768  # rows that the loader holds and shuffles
    precision: str = "auto"  # of the computation: bf16 on CUDA, float32 elsewhere; weights are float32 always
    compile: bool = False  # on CUDA
    recompute: bool = False  # layers in the backward pass, for memory
    replicas: int = 1  # groups of hybrid sharding
    checkpoint_every: int = 200
    spike_factor: float = 3.0  # of the median loss: stop there

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "float32"):
            raise ValueError(f"precision is {self.precision!r}; choose auto, bf16 or float32")
        if unknown := set(self.inputs) - set(INPUTS):
            raise ValueError(f"inputs {sorted(unknown)} are no pathways; choose from {', '.join(INPUTS)}")
        for name in (
            "batch_size",
            "max_epochs",
            "accumulate",
            "max_targets",
            "max_others",
            "pool_rows",
            "replicas",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.balance_loss and self.recompute:
            raise ValueError("balance_loss reads the router where recompute would run it twice; leave one of them out")


def changed_knobs(text: str) -> PretrainConfig:
    """An argparse type: the default configuration with the knobs of a JSON object changed."""
    defaults = {f.name: f.default for f in dataclasses.fields(PretrainConfig)}
    try:
        changes = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON ({error}); write it as {{"batch_size": 256}}') from None
    if not isinstance(changes, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; write it as {{"batch_size": 256}}')
    for name, value in changes.items():
        if name not in defaults:
            raise argparse.ArgumentTypeError(
                f"no knob is named {name!r} (given as {json.dumps(value)}); choose from {', '.join(defaults)}"
            )
        allowed = {float: (float, int), tuple: (list,)}.get(kind := type(defaults[name]), (kind,))
        if type(value) not in allowed:
            raise argparse.ArgumentTypeError(
                f"{name} is {json.dumps(value)}; write it in the form of its default, {json.dumps(defaults[name])}"
            )
        if kind is tuple:
            changes[name] = tuple(str(v) for v in value)
    try:
        return PretrainConfig(**changes)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
