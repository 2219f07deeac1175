"""What every table says of the machine and the code behind its numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHIVED = "$Format:%h$"  # `git archive` writes the short commit here (.gitattributes)


def processor() -> str:
    """The processor's name."""
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def hardware(device: str = "cpu") -> str:
    """The processor with its cores and, for cuda, the card."""
    card = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    return f"{processor()}, {os.cpu_count()} cores{card}"


def commit() -> str:
    """Short commit of the repository, `-dirty` behind it if files differ; that of an archive; else "unknown"."""
    if not ARCHIVED.startswith("$"):
        return ARCHIVED
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
