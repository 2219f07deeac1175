"""The head of a benchmark's page: what, when, on what, by which command."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime

import torch


def heading(title: str, command: str) -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return (
        f"# {title}\n\nDate {datetime.now(UTC):%Y-%m-%d}, commit `{done.stdout.strip() or 'unknown'}`."
        f" {platform.machine()} CPU, {os.cpu_count()} cores, PyTorch {torch.__version__}.\n\n    {command}\n\n"
    )
