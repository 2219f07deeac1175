"""`onerec forget`: take a person out of everything this workspace keeps, and prove it by searching.

onerec forget --user 42                 says what would be removed, removes nothing
onerec forget --user 42 --yes           removes it, leaves a tombstone, searches every file again
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
from pathlib import Path

from cli.options import add_workspace, command, workspace
from datasets.tombstones import Tombstones
from kfp_components.digest import digest_file
from kfp_components.lock import held
from kfp_components.workspace import OUTCOME, Workspace

NOT_OURS = (
    "not in reach of this command: the logs that came in (delete them where they are made; the tombstone keeps them"
    " of every ingest), the caches of running servers (they expire), and weights: models learned from the rows until"
    " the next bootstrap"
)


def add(commands) -> None:
    parser = command(commands, "forget", "take a person out of the workspace", "onerec forget --user 42 --yes")
    parser.add_argument("--user", type=int, required=True, help="user id, as in the logs")
    parser.add_argument("--yes", action="store_true", help="do it (default: only say what would be removed)")
    add_workspace(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Status 1 when the search finds the person afterwards. Safe to run again; a killed run is simply run again."""
    from datasets.forget import rewrite

    w = workspace(args)
    if args.user < 0:
        raise ValueError(f"--user {args.user} is no user id: give the number that stands in the logs")
    with held(w.base / ".pipeline.lock", "onerec forget"):
        found, online = everywhere(w, args.user), online_rows(w, args.user, dry_run=True)
        tell(w, found, online)
        if not args.yes:
            here = bool(found or online)
            print(
                "nothing was removed; add --yes to remove it"
                if here
                else f"user {args.user} is not here; with --yes a tombstone keeps the user out of what comes later"
            )
            return 0
        # The tombstone first: whatever happens after it, no ingest brings the person back.
        Tombstones.read(w.base).add([args.user], dt.datetime.now(dt.UTC)).write(w.base)
        for path in found:
            if path.exists():  # a partition is written as a whole, so one file of it may take others along
                rewrite(path, args.user)
        vouch(w)
        online_rows(w, args.user, dry_run=False)
        left, online = everywhere(w, args.user), online_rows(w, args.user, dry_run=True)
    if left or online:
        tell(w, left, online)
        raise ValueError(f"user {args.user} is still in {len(left)} file(s) and {online} online row(s): run it again")
    print(f"searched every file of {w.root} and the online store: user {args.user} is in none; a tombstone keeps it so")
    print(NOT_OURS)
    return 0


def everywhere(w: Workspace, user: int) -> dict[Path, int]:
    """What the workspace holds: its source's folder, the runs of its days, and copies of both in stagings."""
    from datasets.forget import search

    root = Path(w.root).resolve()
    logs = (w.base / "logs",)  # simulated logs stand for what came in
    places = [w.base, root / "runs", root / ".backfill"]
    return {path: n for place in places if place.is_dir() for path, n in search(place, user, outside=logs).items()}


def online_rows(w: Workspace, user: int, *, dry_run: bool) -> int:
    """In the online store, and in the copies of a local one that stagings hold."""
    from feature_repo.forget import forget_online

    stores = [w.feature_store, *(Path(w.root).resolve() / ".backfill").glob(f"*/{w.source}/feature_store")]
    return sum(forget_online(store, user, dry_run=dry_run) for store in stores)


def tell(w: Workspace, found: dict[Path, int], online: int) -> None:
    root = Path(w.root).resolve()
    for path, count in found.items():
        print(f"  {count:8,d}  {path.relative_to(root)}")
    print(f"  {online:8,d}  rows in the online store")
    print(f"{sum(found.values()):,} rows and mentions in {len(found)} file(s)")


def vouch(w: Workspace) -> None:
    """The outcomes of the days state the new sizes and digests of files that were rewritten, so that whole stays whole.

    Their own digest stays: it names what later steps were made from.
    """
    bases = [w.base, *(Path(w.root).resolve() / ".backfill").glob(f"*/{w.source}")]
    for base in bases:
        for file in base.glob(f"days/*/*/{OUTCOME}"):
            outcome = json.loads(file.read_text())
            entries = [(file.parent / n, e) for n, e in outcome["files"].items()]
            entries += [(base / n, e) for n, e in outcome["outside"].items()]
            changed = [(p, e) for p, e in entries if p.is_file() and _differs(p, e)]
            for path, entry in changed:
                entry |= {"size": path.stat().st_size, "sha256": digest_file(path)}
            if changed:
                staged = file.with_name(f".{file.name}.tmp")
                staged.write_text(json.dumps(outcome, indent=1, sort_keys=True))
                os.replace(staged, file)


def _differs(path: Path, entry: dict) -> bool:
    return path.stat().st_size != entry["size"] or digest_file(path) != entry["sha256"]
