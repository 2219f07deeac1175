"""Options that several commands share, and what follows from them: the workspace and the store."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from kfp_components.workspace import Workspace, check_day
from releases.object_store import ObjectStore
from releases.stores import open_store

SIMULATED = "simulated"


def command(commands, name: str, help: str, example: str) -> argparse.ArgumentParser:
    """A command whose --help ends with an example."""
    return commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: {example}"
    )


def add_workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", default=os.environ.get("ONEREC_ROOT", "var"), help="workspace folder (default: $ONEREC_ROOT or var)"
    )
    parser.add_argument("--source", default="", help="source in the workspace (default: the only one)")


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder with logs in a known layout (default: simulated logs)")
    parser.add_argument(
        "--root", default=os.environ.get("ONEREC_ROOT", "var"), help="workspace folder (default: $ONEREC_ROOT or var)"
    )
    parser.add_argument("--source", default="", help="name of the source in the workspace (default: the folder's name)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")


def day(text: str) -> str:
    """An argparse type: a day as YYYY-MM-DD."""
    try:
        return check_day(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def source_of(data: Path | None, name: str = "") -> str:
    """The name of a source in the workspace: the given one, else from the folder's name."""
    if name:
        return name
    if data is None:
        return SIMULATED
    return re.sub(r"[^a-z0-9._-]+", "-", data.resolve().name.lower()).strip("-._") or "logs"


def workspace(args: argparse.Namespace) -> Workspace:
    """The workspace of --root and --source. Without --source there must be only one: no guessing."""
    if args.source:
        return Workspace(root=args.root, source=args.source)
    found = sources(Path(args.root))
    if not found:
        raise ValueError(
            f"{args.root} holds no releases; run `onerec daily` first, or give --root (with ONEREC_STORE: --source)"
        )
    if len(found) > 1:
        raise ValueError(f"{args.root} holds several sources ({', '.join(found)}); say which: --source {found[0]}")
    return Workspace(root=args.root, source=found[0])


def sources(root: Path) -> list[str]:
    """The sources that have worked in a root: each has a store, or a lake where ONEREC_STORE keeps its releases."""
    return sorted({path.parent.name for kind in ("store", "lake") for path in root.glob(f"*/{kind}")})


def store(args: argparse.Namespace) -> ObjectStore:
    w = workspace(args)
    return open_store(w.store, source=w.source)
