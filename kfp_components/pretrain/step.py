"""Pre-train a day: next-token prediction on the day's positives, from the release of the day before.

Checkpoints and TensorBoard files lie outside the step's folder, so that a killed step goes on where it was:
<workspace>/checkpoints/<day>/<digest of what is trained> and var/runs/<day>/tensorboard. Where the training runs is
said by ONEREC_TRAINER (kfp_components/train_job/launch.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.digest import code_digest, digest_value
from kfp_components.lineage import release_before
from kfp_components.step import Outcome
from kfp_components.train_job.launch import Launch, launch

ROOMS = (
    "models/onerec",
    "models/tokenizer/sid_table.py",
    "models/tokenizer/trie.py",
    "models/tokenizer/carry.py",
    "models/tokenizer/unique.py",
    "models/training/adamw_kernel.py",
    "models/training/checkpoint.py",
    "models/training/data.py",
    "models/training/losses.py",
    "models/training/meter.py",
    "models/training/optimizer.py",
    "models/training/parallelize.py",
    "models/training/prefetch.py",
    "models/training/pretrain.py",
    "models/training/pretrain_config.py",
    "models/training/row_groups.py",
    "models/training/shards.py",
    "models/training/snapshot.py",
    "models/training/stream.py",
    "models/training/tables.py",
    "models/training/training_step.py",
    "models/training/watch.py",
    "models/training/working_copies.py",
)


def run(run: Run, *, features: Outcome, tokenizer: Outcome) -> Outcome:
    """Writes model.safetensors, config.json, optimizer.safetensors, metrics.json."""
    w, before, how = run.workspace, release_before(run.workspace, run.day), Launch.of(os.environ)
    parents = [features.digest, tokenizer.digest, before.publish.digest if before else None]
    facts = {"inputs": parents, "seed": run.seed, "code": code_digest(*ROOMS), **how.settings}
    digest = digest_value(facts)[:16]
    work = w.base / "checkpoints" / run.day / digest

    def body(out: Path, progress) -> dict[str, Any]:
        for other in work.parent.glob("*"):  # of other data, code or settings: of no use to this run
            if other != work:
                shutil.rmtree(other)
        events, sets = w.run_dir(run.day) / "tensorboard", w.training_sets(run.day, bootstrap=before is None)
        with before.checkpoint() if before else contextlib.nullcontext() as previous:
            if how.kind == "process":
                from models.training.pretrain import pretrain

                metrics = pretrain(
                    training_sets=sets,
                    tokenizer=tokenizer.path,
                    previous=previous,
                    out=out,
                    seed=run.seed,
                    progress=progress,
                    work=work,
                    events=events,
                )
            else:
                if previous is not None:  # a folder that other machines see
                    shutil.copytree(previous, work / "previous", dirs_exist_ok=True)
                arguments = ["--training-sets", *map(str, sets), "--tokenizer", str(tokenizer.path), "--out", str(out)]
                arguments += ["--work", str(work), "--events", str(events), "--seed", str(run.seed)]
                arguments += ["--previous", str(work / "previous")] if previous is not None else []
                name = f"onerec-pretrain-{run.day}-{digest}"
                metrics = launch(how, arguments=arguments, name=name, out=out, progress=progress)
        shutil.rmtree(work, ignore_errors=True)
        return metrics

    return run.step(
        "pretrain",
        inputs=[features, tokenizer, before.publish if before else None],
        rooms=ROOMS,
        settings=how.settings,
        body=body,
    )
