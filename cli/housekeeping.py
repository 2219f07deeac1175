"""`onerec housekeeping`: remove what was kept for a time that is over. Releases are not its business.

onerec housekeeping --dry-run
"""

from __future__ import annotations

import argparse
import datetime as dt
import shutil
import time
from pathlib import Path

from cli.options import add_workspace, command, workspace
from kfp_components.lock import held

LEFT_HOURS = 24


def add(commands) -> None:
    parser = command(commands, "housekeeping", "remove what is no longer needed", "onerec housekeeping --dry-run")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    add_workspace(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Names what it removes. Waits for nobody: where a pipeline or a backfill works, its leftovers are left alone."""
    from datasets.staging import KEPT_DAYS, expired

    w = workspace(args)
    now = dt.datetime.now(dt.UTC)
    with held(w.base / ".pipeline.lock", "onerec housekeeping"), held(Path(w.root) / ".backfill.lock", "housekeeping"):
        found = [(path, f"replaced over {KEPT_DAYS} days ago") for path in expired(w.base / ".replaced", now=now)]
        found += [(path, f"a killed write's, over {LEFT_HOURS} h old") for path in leftovers(w.base)]
        found += [
            (path, f"not resumed for {KEPT_DAYS} days") for path in abandoned(Path(w.root) / ".backfill", KEPT_DAYS)
        ]
        for path, why in found:
            print(f"{'would remove' if args.dry_run else 'removing'} {path}: {why}")
            if not args.dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{len(found)} {'to remove' if args.dry_run else 'removed'}")


def leftovers(base: Path) -> list[Path]:
    """Hidden temporary files and folders of writes that were killed."""
    patterns = ("lake/*/.*.tmp-*", "lake/.*.tmp-*", "features/*/.*.tmp-*", "days/*/.*", ".lake.ingest-*")
    return sorted(
        path for pattern in patterns for path in base.glob(pattern) if _old(path, dt.timedelta(hours=LEFT_HOURS))
    )


def abandoned(stagings: Path, days: int) -> list[Path]:
    return sorted(path for path in stagings.glob("*") if _old(path, dt.timedelta(days=days)))


def _old(path: Path, age: dt.timedelta) -> bool:
    """Nothing below it was touched for so long."""
    newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    return time.time() - newest > age.total_seconds()
