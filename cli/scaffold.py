"""`onerec scaffold-component`: the three files of a new pipeline step and its test, ready to be filled in.

onerec scaffold-component rerank --inputs tables:Dataset model:Model --output ranked:Dataset
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cli.options import command
from kfp_components.digest import REPOSITORY

ARTIFACTS = ("Dataset", "Model", "Artifact")
INIT = '"""The `{name}` component: its KFP interface (component.py) and what it does (step.py)."""\n'
COMPONENT = '''"""KFP interface of the step `{name}`; what it does is in step.py."""

from kfp.dsl import {imports}

from kfp_components.image import component


@component
def {name}(
    day: str,
    root: str,
    source: str,
    seed: int,
    fresh_from: str,
{parameters}    {output}: Output[{kind}],
    metrics: Output[Metrics],
) -> str:
    """TODO: what it makes, in one line. Returns the digest of the outcome."""
    from kfp_components.artifacts import run_component
    from kfp_components.{name}.step import run

    return run_component(
        run,
        day=day,
        root=root,
        source=source,
        seed=seed,
        fresh_from=fresh_from,
        inputs={{{inputs}}},
        output={output},
        metrics=metrics,
    )
'''
STEP = '''"""TODO: what the step `{name}` does to a day, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfp_components.context import Run
from kfp_components.step import Outcome


def run(run: Run{arguments}) -> Outcome:
    """TODO: the files it writes. One call into a room below; nothing else belongs here."""

    def body(out: Path, progress) -> dict[str, Any]:
        raise NotImplementedError("{name}: call the room that does the work and write its files into `out`")

    return run.step("{name}", inputs=[{outcomes}], rooms=("TODO",), body=body)
'''
TEST = '''"""The step `{name}`."""

from __future__ import annotations

import pytest

from kfp_components.workspace import STEPS


def test_{name}_is_a_step_of_a_pipeline() -> None:
    assert "{name}" in STEPS, "name it in PIPELINES (workspace.py), RESOURCES, and wire it in its pipeline"


def test_{name}_does_its_work() -> None:
    pytest.fail("write the test of {name} before its body")
'''


def add(commands) -> None:
    example = "onerec scaffold-component rerank --inputs tables:Dataset model:Model --output ranked:Dataset"
    parser = command(commands, "scaffold-component", "the files of a new pipeline step", example)
    parser.add_argument("name", help="a Python name")
    parser.add_argument("--inputs", nargs="*", default=[], metavar="NAME:TYPE", help=f"types: {', '.join(ARTIFACTS)}")
    parser.add_argument("--output", default="result:Dataset", metavar="NAME:TYPE")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="where (default: this repository)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes nothing over anything. The new test fails until the step is written and wired."""
    name, inputs, (output, kind) = args.name, [typed(i) for i in args.inputs], typed(args.output)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name of a step; write it as small_letters")
    folder = args.repository / "kfp_components" / name
    test = args.repository / "tests" / "kfp_components" / f"test_{name}_step.py"
    for path in (folder, test):
        if path.exists():
            raise ValueError(f"{path} is there already; choose another name")
    kinds = sorted({"Metrics", "Output", kind, *(["Input"] if inputs else []), *(k for _, k in inputs)})
    parameters = "".join(f"    {n}: Input[{k}],\n    {n}_digest: str,\n" for n, k in inputs)
    given = ", ".join(f'"{n}": ({n}, {n}_digest)' for n, _ in inputs)
    fields = {"name": name, "output": output, "kind": kind, "imports": ", ".join(kinds), "parameters": parameters}
    fields |= {"inputs": given, "outcomes": ", ".join(n for n, _ in inputs)}
    fields["arguments"] = "".join([", *"] * bool(inputs) + [f", {n}: Outcome" for n, _ in inputs])
    folder.mkdir(parents=True)
    test.parent.mkdir(parents=True, exist_ok=True)
    targets = {folder / "__init__.py": INIT, folder / "component.py": COMPONENT, folder / "step.py": STEP, test: TEST}
    for path, text in targets.items():
        path.write_text(text.format(**fields))
        print(path)
    print("next: name it in PIPELINES (workspace.py) and RESOURCES (resources.py), wire it in its pipeline, compile")


def typed(text: str) -> tuple[str, str]:
    """NAME:TYPE as a pair; ValueError for another form or type."""
    name, _, kind = text.partition(":")
    if not name.isidentifier() or kind not in ARTIFACTS:
        raise ValueError(f"{text!r} is no NAME:TYPE; the types are {', '.join(ARTIFACTS)}")
    return name, kind
