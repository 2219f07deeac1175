"""Stops pre-training when the loss leaves the road, before the weights do, and keeps the batch that did it.

A loss or gradient norm that is not finite stops at once; so does a loss above `factor` times the median of the last
`WINDOW` steps, once there are `WARM` of them. NTP losses move by percent from step to step, so a factor of 3 is never
noise. The batch is written as safetensors beside about.json: `study/step-00000120/`.
"""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from statistics import median

from safetensors.torch import save_file
from torch import Tensor

WINDOW, WARM = 64, 16


class LossWatch:
    """One judgement a step. `losses` is what a resumed run must be told."""

    def __init__(self, study: Path, factor: float, losses: list[float] | None = None) -> None:
        self.study, self.factor = study, factor
        self.losses: deque[float] = deque(losses or [], maxlen=WINDOW)

    def check(
        self, step: int, loss: float, plain: float, norm: float, batches: list[dict[str, Tensor]], rank: int = 0
    ) -> None:
        """`loss` is what is minimised, `plain` the NTP loss without the weights of rows, which differ from day to day.

        Raises FloatingPointError, after saving the batches of this process, when the step must not be taken.
        """
        usual = median(self.losses) if len(self.losses) >= WARM else math.inf
        if not math.isfinite(loss):
            trouble = f"loss is {loss}"
        elif not math.isfinite(norm):
            trouble = f"gradient norm is {norm}"
        elif plain > self.factor * usual:
            trouble = f"loss is {plain:.3f}, more than {self.factor:g} times the median {usual:.3f} of the last steps"
        else:
            self.losses.append(plain)
            return
        folder = self.study / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, batch in enumerate(batches):
            save_file(
                {k: v.contiguous().cpu() for k, v in batch.items()}, folder / f"rank-{rank}-batch-{i}.safetensors"
            )
        about = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "trouble": trouble, "usual": str(usual)}
        (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        raise FloatingPointError(
            f"{trouble} at step {step}; the weights were left as they were and the batch lies in {folder}: look at its "
            "values, mend the data, or lower lr_dense or lr_sparse, and run the step again (it goes on from its last "
            "checkpoint)"
        )
