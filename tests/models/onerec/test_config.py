"""Configurations: impossible sizes are refused by name, files are read back exactly or not at all."""

from __future__ import annotations

import json

import pytest

from models.onerec.config import OneRecConfig, onerec_laptop


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"d_model": 24, "heads": 5}, "d_model 24 is not a multiple of heads 5"),
        ({"experts": 2, "experts_per_token": 3}, "experts_per_token 3"),
        ({"experts_per_token": 0}, "experts_per_token is 0"),
        ({"levels": 4}, "levels is 4"),
        ({"d_model": 12, "heads": 4}, "d_model 12 is not a multiple of 8.*choose 16"),
        ({"expert_dim": 100}, "expert_dim 100 is not a multiple of 8.*choose 104"),
        ({"short_len": 0}, "short_len is 0"),
        ({"lifelong_len": -1}, "lifelong_len is -1"),
        ({"lifelong_queries": 0}, "lifelong_queries is 0"),
        ({"static_buckets": 0}, "static_buckets is 0"),
        ({"encoder_layers": -1}, "encoder_layers is -1.*must not be negative"),
        ({"encoder_layers": 0}, "encoder_layers is 0"),
        ({"architecture": "lazy"}, "architecture is 'lazy'; choose one of encoder_decoder, lazy_decoder"),
        ({"architecture": "lazy_decoder"}, "has no encoder: set encoder_layers=0 and item_head=False"),
        ({"affinity": "relu"}, "affinity is 'relu'"),
        ({"history_bag": True, "item_head": False}, "set item_head=True"),
        ({"event_head": True, "item_head": False}, "event_head predicts by the item head: set item_head=True"),
        ({"history": "vid"}, "history is 'vid'; choose one of sid, hashed"),
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"encoder_moe_layers": 3}, "encoder_moe_layers is 3, but there are 2"),
        ({"decoder_dense_layers": 3}, "decoder_dense_layers is 3, but there are 2"),
        ({"shared_expert_dim": 12}, "shared_expert_dim 12 is not a multiple of 8"),
        ({"item_buckets": 1}, "item_buckets is 1"),
        ({"session_items": 0}, "session_items is 0"),
    ],
)
def test_impossible_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        OneRecConfig(codebook_size=16, items=10, static_features=3, **changes)


def test_save_and_load(tmp_path):
    config = onerec_laptop(codebook_size=64, items=7583, static_features=26)
    config.save(tmp_path / "config.json")
    assert OneRecConfig.load(tmp_path / "config.json") == config


def test_an_unknown_field_is_named(tmp_path):
    onerec_laptop(codebook_size=64, items=5, static_features=3).save(tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"d_modle": 8}))
    with pytest.raises(ValueError, match="d_modle"):
        OneRecConfig.load(tmp_path / "config.json")


@pytest.mark.parametrize("field", ["items", "d_model"])
def test_a_missing_field_is_named(tmp_path, field):
    """Also one that has a default: the default of today need not be the size that was trained."""
    onerec_laptop(codebook_size=64, items=5, static_features=3).save(tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw[field]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=field):
        OneRecConfig.load(tmp_path / "config.json")


@pytest.mark.parametrize("field", ["history_bag", "event_head"])
def test_a_file_from_before_a_setting_is_the_model_it_was(tmp_path, field):
    made = onerec_laptop(codebook_size=64, items=5, static_features=3)
    made.save(tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw[field]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert OneRecConfig.load(tmp_path / "config.json") == made
