"""Pre-training: next-token prediction on the positives of each user and day, from the checkpoint of the day before.

    python -m models.training.pretrain --training-sets DIR/dt=*/part-0.parquet --tokenizer DIR --out OUT --work WORK
    torchrun --nproc-per-node 4 -m models.training.pretrain ...         # the same over processes, here or on a cluster

On the first day the rows of all days are passed over at least once, and so often that at least `min_steps` steps are
taken (at most `max_epochs` times); newer days weigh more, and the last pass runs in day order. A later day passes over
its own rows once.
Writes model.safetensors, config.json, optimizer.safetensors, metrics.json into `out`. With `work` it keeps checkpoints
there, and a run that was killed at any step goes on to the same bytes that it would have written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch

from models.onerec.config import OneRecConfig, onerec_laptop
from models.onerec.model import OneRec
from models.training.checkpoint import (
    Tokenizer,
    load_model,
    load_optimizer,
    moments,
    save_model,
    save_optimizer,
    start_optimizer,
)
from models.training.losses import PretrainLoss
from models.training.meter import Meter, counts_of, flops_of_row
from models.training.optimizer import learning_rate, make_optimizer, set_rate
from models.training.parallelize import Processes, checkpoint_activations, parallelize
from models.training.prefetch import Prefetcher
from models.training.pretrain_config import PretrainConfig, changed_knobs
from models.training.row_groups import Index
from models.training.snapshot import Checkpointer, newest, run_digest
from models.training.stream import Recency, Stream
from models.training.training_step import TrainingStep
from models.training.watch import LossWatch

SIZE, DEFAULTS = "models.onerec.config:onerec_laptop", PretrainConfig()
TIMES = ("seconds", "samples_per_second", "data_wait", "mfu", "peak_bytes", "checkpoint_seconds")  # not in metrics.json


def pretrain(
    *,
    training_sets: list[Path],
    tokenizer: Path,
    previous: Path | None,
    out: Path,
    seed: int,
    progress: Callable[[str], None] = print,
    config: PretrainConfig = DEFAULTS,
    device: str = "cpu",
    build: Callable[..., OneRecConfig] = onerec_laptop,
    work: Path | None = None,
    events: Path | None = None,
) -> dict:
    """Train one day (previous given) or bootstrap (None); returns the metrics for the report.

    `build` names the size of a new model. `work` keeps checkpoints and batches for study, `events` TensorBoard files.
    Raises ValueError when there is not one positive to learn from, FloatingPointError when the loss leaves the road.
    """
    if config.compile and not device.startswith("cuda"):
        raise ValueError(
            f"compile needs a CUDA device, not {device}: grouped products trace in bf16 only; leave it off"
        )
    processes = Processes.join(device, config.replicas)
    first = processes.rank == 0
    say = progress if first else _silent
    torch.manual_seed(seed)
    tok = Tokenizer.load(tokenizer)
    model = _model(training_sets, previous, tok, build).to(processes.device).train()
    index = Index.scan(training_sets, tok.catalogue)
    streams = processes.world * config.accumulate
    wanted = math.ceil(config.min_steps * config.batch_size * streams / index.rows)
    epochs = 1 if previous else min(wanted, config.max_epochs)
    own = [
        Stream(
            index=index,
            catalogue=tok.catalogue,
            config=model.config,
            batch_size=config.batch_size,
            max_targets=config.max_targets,
            epochs=epochs,
            seed=seed,
            recency=Recency(half_life_days=config.half_life_days, least=config.min_weight),
            inputs=config.inputs,
            pool_rows=config.pool_rows,
            streams=streams,
            number=processes.rank * config.accumulate + i,
            max_others=config.max_others if config.shown_loss_weight else 0,
        )
        for i in range(config.accumulate)
    ]
    steps = own[0].steps()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.startswith("cuda"))
    loss = PretrainLoss(
        model, config.item_loss_weight, config.balance_loss, config.shown_loss_weight, config.event_loss_weight
    )
    if config.recompute:
        checkpoint_activations(model)
    parallelize(loss, processes, bf16=bf16)
    if config.compile:
        loss.compile(dynamic=True)
    optimizer, names = make_optimizer(
        model, lr_sparse=config.lr_sparse, lr_dense=config.lr_dense, weight_decay=config.weight_decay
    )
    scale = 1.0
    if previous is None:
        start_optimizer(optimizer)
    else:
        carry = tok.carries(previous / "model.safetensors")
        load_optimizer(optimizer, names, previous / "optimizer.safetensors", len(tok.catalogue), carry)
        scale = config.lr_refit_scale if carry is not None and carry.refit else config.lr_daily_scale

    run = run_digest(config, model.config, index, tok, previous, seed, streams)
    state = {f"model/{k}": v for k, v in model.state_dict().items() if k != "sid_NL"} | moments(optimizer, names)
    saver = work and Checkpointer(work / "checkpoints", run, rank=processes.rank, world=processes.world)
    found = newest(work / "checkpoints", run, say) if work else None
    if found:
        found.load(state)
        say(f"goes on from {found.path.name} of {steps} steps")
    start, kept = (found.step, found.state) if found else (0, {"meter": None, "losses": None})
    training = TrainingStep(loss, optimizer, processes, config, bf16=bf16)
    watch = LossWatch((work or out) / "study", config.spike_factor, kept["losses"])
    meter = Meter(
        steps=steps,
        say=say,
        events=events if first else None,
        device=processes.device,
        processes=processes.world,
        kept=kept["meter"],
        start=start,
    )
    flops = flops_of_row(model.config, processes.device)
    loads: list[list[float]] = []
    try:
        with Prefetcher(zip(*(stream.batches(start) for stream in own)), processes.device) as loader:
            for step, parts in zip(range(start, steps), loader):
                # Whatever is random in a step (dropout) follows from its number: nothing to store, nothing to lose.
                torch.manual_seed((seed * 1_000_003 + step) * 4096 + processes.rank)
                rate = learning_rate(step, steps, config.warmup_share)
                set_rate(optimizer, scale * rate)
                counts = processes.total(torch.stack([counts_of(batch) for batch in parts]).sum(0))
                total, *each = training.backward(parts, counts[0])
                norm = training.clip()
                watch.check(step, total, sum(each), norm, parts, processes.rank)
                loads = training.update()
                targets, samples, *events_of = counts.tolist()
                meter.step(
                    step,
                    levels=each,
                    targets=targets,
                    samples=samples,
                    flops=flops and samples * flops(targets / samples, [n / samples for n in events_of]),
                    norm=norm,
                    rate=rate,
                    loads=loads,
                    waited=loader.waited,
                )
                if saver and (step + 1) % config.checkpoint_every == 0 and step + 1 < steps:
                    saver.save(step + 1, state, {"meter": meter.state(), "losses": list(watch.losses)})
    finally:  # also when the loss stops the run: whoever goes on finds the last checkpoint whole
        if saver:
            saver.wait()
    save_model(model, out, write=first)
    save_optimizer(optimizer, names, out, write=first)
    metrics = {
        "loss": meter.curve,
        "samples": index.rows,
        "targets": meter.targets,
        "steps": steps,
        "epochs": epochs,
        "expert_load": loads,
        "parameters": sum(p.numel() for p in model.parameters()),
        **meter.close(),
        **({"checkpoint_seconds": saver.stood_still} if saver else {}),
    }
    if first:
        said = {k: v for k, v in metrics.items() if k not in TIMES}
        (out / "metrics.json").write_text(json.dumps(said, indent=1) + "\n")
    processes.leave()
    return metrics


def _model(
    training_sets: list[Path], previous: Path | None, tok: Tokenizer, build: Callable[..., OneRecConfig]
) -> OneRec:
    """Yesterday's model grown to the catalogue, or a new one."""
    if previous is not None:
        return load_model(previous, tok)
    features = static_features(training_sets[0])
    config = build(codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=features)
    return OneRec(config, torch.from_numpy(tok.sid_NL))


def static_features(path: Path) -> int:
    """Number of static codes a user has in this training set."""
    with pq.ParquetFile(path) as file:
        first = next(file.iter_batches(1, columns=["static_codes"]), None)
    if first is None or not len(first):
        raise ValueError(f"no training rows in {path}; run the features step of this day again")
    return len(first.column("static_codes")[0])


def _silent(line: str) -> None:
    """What the processes other than the first say."""


def main() -> None:
    p = argparse.ArgumentParser(description="Pre-train a day; under torchrun, over all its processes.")
    p.add_argument("--training-sets", type=Path, nargs="+", required=True)
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--previous", type=Path, help="model folder of the day before (without it: bootstrap)")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--work", type=Path, help="folder for checkpoints; with several processes, a shared one")
    p.add_argument("--events", type=Path, help="folder for TensorBoard files")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--size", default=SIZE, metavar="MODULE:FUNCTION", help="what builds a new model's configuration")
    p.add_argument("--config", type=changed_knobs, default="{}", help='changed knobs as JSON, {"batch_size": 256}')
    args = vars(p.parse_args())
    module, _, function = args.pop("size").partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        p.error(f"--size: {error}; write it as {SIZE}")
    args["out"].mkdir(parents=True, exist_ok=True)
    pretrain(**args, build=build)


if __name__ == "__main__":
    main()
