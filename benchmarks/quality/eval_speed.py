"""How long `onerec eval` takes: a release on the 3,214 users of KuaiRand's 2022-05-06, intervals and slices included.

    python -m benchmarks.quality.eval_speed --prepared build/quality/kuairand_onerec --device cuda

The release is the tokenizer of `kuairand_onerec` with a model of the daily size and random weights: a search takes as
long whatever it finds. Timed are reading, ranking (beam 160, first 100 places) and statistics, in one process that has
imported everything. Appends a line to eval_speed.md beside this file, one a device.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.machine import commit, hardware
from benchmarks.quality.kuairand_prepare import LAST
from benchmarks.quality.recipes import up_to
from models.evaluation.evaluate import BEAM, TOP
from models.evaluation.release import evaluate_release
from models.onerec.config import onerec_laptop
from models.onerec.model import OneRec
from models.training.checkpoint import Tokenizer, save_model
from models.training.pretrain import static_features

HEAD = (
    f"# How long `onerec eval` takes: beam {BEAM}, first {TOP} places, intervals and slices\n\n"
    "| hardware | device | users | seconds, each run | rows of the table | torch | commit | date |\n"
    "|---|---|---:|---:|---:|---|---|---|\n"
)


def release(prepared: Path, out: Path) -> Path:
    """A release folder: tokenizer/ and model/ with random weights."""
    (out / "model").mkdir()
    (out / "tokenizer").symlink_to((prepared / "tokenizer" / "once_1").resolve())
    tok = Tokenizer.load(out / "tokenizer")
    static = static_features(up_to(prepared, LAST)[-1])
    config = onerec_laptop(codebook_size=tok.codebook_size, items=len(tok.catalogue), static_features=static)
    torch.manual_seed(0)
    save_model(OneRec(config, torch.from_numpy(tok.sid_NL)), out / "model")
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prepared", type=Path, required=True, help="folder prepared by kuairand_onerec")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--users", type=int, help="a sample of so many users (default: all)")
    p.add_argument("--runs", type=int, default=2)
    p.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "eval_speed.md")
    args = p.parse_args()
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        made = release(args.prepared, Path(folder))
        for _ in range(args.runs):
            begun = time.monotonic()
            report = evaluate_release(
                release=made,
                evaluation_set=args.prepared / "evaluation" / f"dt={LAST}.parquet",
                training_sets=up_to(args.prepared, LAST),
                users=args.users,
                device=args.device,
                progress=lambda line: None,
            )
            seconds.append(time.monotonic() - begun)
    cells = [hardware(args.device), args.device, f"{report['users']:,}", ", ".join(f"{s:.1f}" for s in seconds)]
    cells += [str(len(report["rows"])), torch.__version__, commit(), datetime.now(UTC).date().isoformat()]
    line = f"| {' | '.join(cells)} |\n"
    text = args.out.read_text() if args.out.exists() else HEAD
    args.out.write_text(text + line)
    print(line)


if __name__ == "__main__":
    main()
