"""The benchmark of validation runs on a small lake, and its good data passes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data_quality.validate_speed import measure, table


def test_a_small_size_is_measured(tmp_path: Path) -> None:
    found = measure(5000, tmp_path)
    assert found["failed"] == [] and found["checks"] > 60
    assert found["seconds"] > 0 and found["peak_mib"] > 50
    assert "| 5,000 |" in table([found], "a command")
    assert list(tmp_path.iterdir()) == [], "the lake is gone"
