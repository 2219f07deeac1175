"""The lists of a release that the daily run made, for KuaiRand's table: what two CPU cores train in their minutes.

    python -m benchmarks.quality.release_lists --release var/kuairand-pure/store/releases/ID \
        --evaluation var/kuairand-pure/features/evaluation/dt=2022-05-05/part-0.parquet

The release is ranked as `onerec eval` ranks it. Its manifest says the seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.machine import commit, hardware
from benchmarks.quality import lists
from models.evaluation.evaluate import Ranker, held_out
from models.training.checkpoint import Tokenizer

TITLE = "OneRec, release of a CPU day"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--release", type=Path, required=True, help="folder with tokenizer/, model/ and manifest.json")
    p.add_argument("--evaluation", type=Path, required=True, help="evaluation rows of the release's day")
    p.add_argument("--device", default="cpu")
    p.add_argument("--lists", type=Path, default=Path("build/quality/kuairand_lists"))
    args = p.parse_args()
    manifest = json.loads((args.release / "manifest.json").read_text())
    rows, _, seen = held_out(args.evaluation)
    ranker = Ranker(
        args.evaluation, Tokenizer.load(args.release / "tokenizer"), args.release / "model", rows, args.device
    )
    ranked, _ = ranker.rank(seen)
    about = {"device": hardware(args.device), "commit": commit(), "release": manifest["release_id"]}
    made = lists.Lists(
        model=TITLE, seed=int(manifest["seed"]), user_id=ranker.data.user_id[rows], ranked=ranked, about=about
    )
    print(lists.save(args.lists, made))


if __name__ == "__main__":
    main()
