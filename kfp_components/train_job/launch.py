"""Where pre-training runs: in this process (the default), under torchrun on this machine, or as a TrainJob.

    ONEREC_TRAINER=torchrun ONEREC_TRAINER_PROCESSES=4                        # processes on this machine
    ONEREC_TRAINER=trainjob ONEREC_TRAINER_NODES=2 ONEREC_TRAINER_GPUS=8      # pods, through Kubeflow Trainer

All three run models/training/pretrain.py with the same files. The workspace must be a volume that the pods share.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfp_components.train_job.follow import follow
from kfp_components.train_job.manifest import MODULE, TrainJob

KINDS = ("process", "torchrun", "trainjob")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """`processes` is that of one node. A TrainJob has one process a GPU."""

    kind: str = "process"
    processes: int = 1
    nodes: int = 1
    gpus: int = 0
    namespace: str = "onerec"
    queue: str = ""
    image: str = ""  # of the pods; the components' own unless told otherwise

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"ONEREC_TRAINER is {self.kind!r}; choose from {', '.join(KINDS)}")
        for name in ("processes", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"ONEREC_TRAINER_{name.upper()} is {getattr(self, name)}; it must be at least 1")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch:
        """From ONEREC_TRAINER and ONEREC_TRAINER_<FIELD>. ValueError for what is no number or no kind."""
        found: dict[str, Any] = {"kind": environment.get("ONEREC_TRAINER", "process")}
        for field in dataclasses.fields(cls):
            name = f"ONEREC_TRAINER_{field.name.upper()}"
            if (text := environment.get(name)) is None or field.name == "kind":
                continue
            if field.type == "int" and not text.isdigit():
                raise ValueError(f"{name} is {text!r}; give a number")
            found[field.name] = int(text) if field.type == "int" else text
        return cls(**found)

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the bytes of the outcome: how many processes share a step."""
        world = {"process": 1, "torchrun": self.processes, "trainjob": self.nodes * max(1, self.gpus)}[self.kind]
        return {} if world == 1 else {"processes": world}


def launch(
    how: Launch, *, arguments: list[str], name: str, out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run pretrain's command line as told and return the metrics that it wrote into `out`.

    `name` is the TrainJob's and holds the run's digest. Raises RuntimeError with the last lines of what failed.
    """
    if how.kind == "torchrun":
        _torchrun(how.processes, arguments, progress)
    else:
        from kfp_components.image import IMAGE  # brings all of KFP

        job = TrainJob(
            name=name,
            arguments=arguments,
            nodes=how.nodes,
            gpus=how.gpus,
            image=how.image or IMAGE,
            namespace=how.namespace,
            queue=how.queue,
        )
        follow(job, progress)
    if not (out / "metrics.json").is_file():
        raise RuntimeError(f"training ended without {out / 'metrics.json'}: do the pods see the workspace's volume?")
    return json.loads((out / "metrics.json").read_text())


def _torchrun(processes: int, arguments: list[str], progress: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    process = subprocess.Popen(
        [*command, "-m", MODULE, *arguments],
        env={"OMP_NUM_THREADS": threads} | os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    tail: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[-100:], line.rstrip()]  # torchrun itself ends with some forty lines
            progress(line.rstrip())
        if process.wait():
            raise RuntimeError(f"torchrun ended with status {process.returncode}:\n" + "\n".join(tail))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
