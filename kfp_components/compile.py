"""Compile the pipelines to YAML, as a cluster takes them.

python -m kfp_components.compile --out build/pipelines
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kfp import compiler

from kfp_components.pipelines.features import features
from kfp_components.pipelines.release import release
from kfp_components.pipelines.tokenizer import tokenizer
from kfp_components.pipelines.training import training

COMPILED = {"features": features, "tokenizer": tokenizer, "training": training, "release": release}


def compile_pipeline(name: str, out: Path) -> Path:
    """Write `<out>/<name>.yaml` and return it."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{name}.yaml"
    compiler.Compiler().compile(COMPILED[name], str(target))
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the YAML files")
    out = parser.parse_args().out
    for name in COMPILED:
        print(compile_pipeline(name, out))


if __name__ == "__main__":
    main()
