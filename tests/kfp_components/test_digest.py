"""Digests: what changes them and what does not."""

from __future__ import annotations

import os

import pytest

from kfp_components.digest import code_digest, data_fingerprint, digest_value, environment_locks


def test_order_of_keys_does_not_matter_and_values_do() -> None:
    assert digest_value({"a": 1, "b": [2]}) == digest_value({"b": [2], "a": 1})
    assert digest_value({"a": 1}) != digest_value({"a": 2})
    with pytest.raises(ValueError):
        digest_value({"a": float("nan")})


def test_code_of_a_room_and_of_a_file() -> None:
    assert code_digest("releases") != code_digest("serving") != code_digest("releases/gates.py")
    with pytest.raises(ValueError, match="no_such_room holds no code"):
        code_digest("no_such_room")


def test_runtime_locks_and_no_others() -> None:
    assert {"ml.txt", "triton.txt"} <= set(environment_locks())
    assert not any("dev" in name or "orchestrate" in name for name in environment_locks())


def test_fingerprint_sees_names_sizes_and_times(tmp_path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n")
    first = data_fingerprint(tmp_path)
    assert first == data_fingerprint(tmp_path)
    os.utime(tmp_path / "log.csv", ns=(1, 1))
    assert data_fingerprint(tmp_path) != first
    with pytest.raises(ValueError, match="give DATA="):
        data_fingerprint(tmp_path / "none")
