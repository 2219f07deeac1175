"""KuaiRand-Pure: what OneRec's rows are trained on, eight days by the day's own steps, and their tokenizers.

    python -m benchmarks.quality.kuairand_onerec --data LOGS/kuairand-pure --prepared build/quality/kuairand_onerec

prepare(features(Path("LOGS/kuairand-pure"), Path("var")), Path("prepared"), [1, 2, 3], Path("LOGS/kuairand-pure"))
"""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

from benchmarks.quality.kuairand import read_day
from benchmarks.quality.kuairand_absent import complete
from benchmarks.quality.recipes import CHOOSE, up_to

DAYS = ("2022-04-28", "2022-04-29", "2022-04-30", *(f"2022-05-0{d}" for d in range(1, 6)))
LAST = DAYS[-1]  # the last day of training in the table


def features(data: Path, root: Path) -> Path:
    """Run the features steps of DAYS in a workspace below `root`; what has run is reused. Returns its folder."""
    from kfp_components.context import Run
    from kfp_components.ingest import step as ingest
    from kfp_components.pathways import step as pathways
    from kfp_components.validate import step as validate
    from kfp_components.workspace import Workspace

    workspace = Workspace(root=str(root), source="kuairand-pure")
    for day in DAYS:
        run = Run(workspace=workspace, day=day, seed=0)
        tables = ingest.run(run, data=str(data))
        pathways.run(run, tables=tables, quality=validate.run(run, tables=tables))
    return workspace.base


def prepare(workspace: Path, out: Path, seeds: list[int], data: Path | None = None) -> None:
    """Copy the partitions that training reads, and make the tokenizers of every seed, once and day by day.

    With the log's folder `data`, the users whom the evaluation rows leave out get theirs (kuairand_absent.py).
    """
    from models.tokenizer.refresh import refresh_tokenizer

    for table, under in (("training", "features"), ("evaluation", "features"), ("items", "lake")):
        (out / table).mkdir(parents=True, exist_ok=True)
        for folder in sorted((workspace / under / table).glob("dt=*")):
            shutil.copyfile(folder / "part-0.parquet", out / table / f"{folder.name}.parquet")

    for day in (CHOOSE, LAST) if data else ():
        after = datetime.date.fromisoformat(day) + datetime.timedelta(days=1)
        asked, rows = read_day(data, int(f"{after:%Y%m%d}")), out / "evaluation" / f"dt={day}.parquet"
        print(f"{after}: {complete(rows, asked, workspace / 'features', day)} users of the log get rows", flush=True)

    def fit(day: str, seed: int, to: Path, previous: Path | None) -> Path:
        if not (to / "trie.safetensors").exists():
            shutil.rmtree(to, ignore_errors=True)
            to.mkdir(parents=True)
            items = out / "items" / f"dt={day}.parquet"
            refresh_tokenizer(
                items=items,
                training_sets=up_to(out, day),
                previous=previous,
                out=to,
                seed=seed,
                progress=lambda line: None,
            )
        return to

    for seed in seeds:
        if seed == seeds[0]:
            fit(CHOOSE, seed, out / "tokenizer" / f"choose_{seed}", None)
        fit(LAST, seed, out / "tokenizer" / f"once_{seed}", None)
        before = None
        for day in DAYS:
            before = fit(day, seed, out / "tokenizer" / f"daily_{seed}" / day, before)
        print(f"tokenizers of seed {seed}", flush=True)
