"""A model configuration that trains a step in milliseconds, and pre-training with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq

from models.onerec.config import OneRecConfig
from models.training.pretrain import PretrainConfig, pretrain
from tests.models.conftest import World


def tiny(**shape: int) -> OneRecConfig:
    return OneRecConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        heads=2,
        ffn_dim=24,
        experts=4,
        expert_dim=16,
        positive_len=12,
        lifelong_len=12,
        lifelong_queries=2,
        author_buckets=64,
        tag_buckets=16,
        **shape,
    )


def with_event_head(**shape: int) -> OneRecConfig:
    return dataclasses.replace(tiny(**shape), event_head=True)


def train(world: World, out: Path, config: PretrainConfig | None = None, **changes) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    arguments = {
        "training_sets": world.training,
        "tokenizer": world.tokenizer,
        "previous": None,
        "seed": 5,
        "progress": lambda _: None,
        "config": config or PretrainConfig(),
        "build": tiny,
    }
    return pretrain(out=out, **(arguments | changes))


def cut(paths: list[Path], folder: Path, rows: int) -> list[Path]:
    """The same tables in row groups of `rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, path in enumerate(paths):
        out.append(folder / f"day-{i}.parquet")
        pq.write_table(pq.read_table(path), out[-1], row_group_size=rows)
    return out
