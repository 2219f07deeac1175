"""Compile the pipelines to YAML; the packages in kfp_components/compiled are what Airflow submits to a cluster.

    python -m kfp_components.compile            write kfp_components/compiled anew, after a change
    python -m kfp_components.compile --check    status 1 and the names when a package is not what the code compiles to
    python -m kfp_components.compile --image registry/onerec/ml@sha256:...    the same, with another image for all steps

Beside the packages lies imports.json: for each pipeline its parameters, and the earlier steps whose outcomes it starts
from, so that whoever submits it needs no code of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from kfp import compiler

from kfp_components.image import LOCK, check_image
from kfp_components.pipelines.command import command
from kfp_components.pipelines.features import features
from kfp_components.pipelines.judge import judge
from kfp_components.pipelines.rollout import canary, promote, shadow
from kfp_components.pipelines.tokenizer import tokenizer
from kfp_components.pipelines.training import training
from kfp_components.workspace import IMPORTS

COMPILED = {"features": features, "tokenizer": tokenizer, "training": training}
COMPILED |= {"gate": judge, "shadow": shadow, "canary": canary, "promote": promote, "command": command}
PACKAGES = Path(__file__).parent / "compiled"


def compile_pipeline(name: str, out: Path) -> Path:
    """Write `<out>/<name>.yaml` and return it."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{name}.yaml"
    compiler.Compiler().compile(COMPILED[name], str(target))
    return target


def compile_all(out: Path) -> None:
    """All packages and imports.json; the same code gives the same bytes."""
    table = {}
    for name in COMPILED:
        first = next(yaml.safe_load_all(compile_pipeline(name, out).read_text()))
        table[name] = {
            "imports": IMPORTS.get(name, {}),
            "parameters": sorted(first["root"]["inputDefinitions"]["parameters"]),
        }
    staged = out / ".imports.json"
    staged.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    os.replace(staged, out / "imports.json")


def drift(packages: Path = PACKAGES) -> list[str]:
    """The files that are not what the code compiles to, by name."""
    with tempfile.TemporaryDirectory() as folder:
        compile_all(Path(folder))
        now = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
    kept = {p.name: p.read_bytes() for p in packages.iterdir()} if packages.is_dir() else {}
    return sorted(name for name in now.keys() | kept.keys() if now.get(name) != kept.get(name))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGES, help="folder (default: kfp_components/compiled)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--image", type=check_image, help="the image of all steps from now on, by digest")
    args = parser.parse_args(argv)
    if args.image:
        staged = LOCK.with_name(f".{LOCK.name}")
        staged.write_text(json.dumps({"ml": args.image}, indent=1) + "\n")
        os.replace(staged, LOCK)
        # The components were made with the image of before: compile in a process that reads the new one.
        return subprocess.run([sys.executable, "-m", "kfp_components.compile", "--out", str(args.out)]).returncode
    if not args.check:
        compile_all(args.out)
        return 0
    if found := drift(args.out):
        print(
            f"{', '.join(found)}: not what the code compiles to; run python -m kfp_components.compile", file=sys.stderr
        )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
