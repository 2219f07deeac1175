"""`make bench` lists every benchmark that is a command, with what it measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_benchmarks_are_listed_with_what_they_measure() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks"], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    lines = told.stdout.splitlines()
    listed = dict(zip(lines[0:-2:2], lines[1:-2:2]))
    assert "benchmarks.features.lifelong" in listed and "benchmarks.tokenizer.cpu" in listed
    for module, says in listed.items():
        assert (REPOSITORY / (module.replace(".", "/") + ".py")).is_file()
        assert len(says.strip()) > 20, f"{module} does not say what it measures"
