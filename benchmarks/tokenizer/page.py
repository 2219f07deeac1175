"""The head of a benchmark's page: what, when, on what, by which command."""

from __future__ import annotations

from datetime import UTC, datetime

import torch

from benchmarks.machine import commit, hardware


def heading(title: str, command: str) -> str:
    return (
        f"# {title}\n\nDate {datetime.now(UTC):%Y-%m-%d}, commit `{commit()}`."
        f" {hardware()}, PyTorch {torch.__version__}.\n\n    {command}\n\n"
    )
