"""A step's key covers the code that its body runs: every file it imports, however far down, lies in its rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from kfp_components.digest import REPOSITORY

STEPS = sorted(path.parent.name for path in (REPOSITORY / "kfp_components").glob("*/step.py"))
BELOW = ("models", "serving", "releases", "feature_repo", "datasets", "data_quality")
WITHOUT_A_KEY = {"announce", "command", "canary", "shadow"}  # they watch or tell; nothing of theirs is reused
MESSAGES = {"datasets/errors.py"}
# How a release is read: it is whole and signed, or it is refused; either way no number depends on this code.
READING = {f"releases/{name}.py" for name in ("contents", "manifest", "object_store", "signing")}


def imports(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BELOW:
            module = Path(*str(node.module).split("."))
            yield from (module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names))


def reached(start: Path) -> set[Path]:
    found, open_files = set(), list(imports(start))
    while open_files:
        file = open_files.pop()
        if file not in found and (REPOSITORY / file).exists():
            found.add(file)
            open_files += imports(file)
    return found


def rooms(step: Path) -> tuple[str, ...]:
    """What the step gives as `rooms`, as a literal or as a constant of its module."""
    tree = ast.parse((REPOSITORY / step).read_text())
    given = next(n.value for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "rooms")
    if isinstance(given, ast.Name):
        name = given.id
        given = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name)
    return ast.literal_eval(given)


@pytest.mark.parametrize("name", [name for name in STEPS if name not in WITHOUT_A_KEY])
def test_a_changed_line_that_the_step_runs_changes_its_key(name: str) -> None:
    step = Path("kfp_components") / name / "step.py"
    covered = rooms(step)
    assert all((REPOSITORY / room).exists() for room in covered)
    exempt = MESSAGES | (READING if name in ("evaluate", "serve") else set())
    outside = {str(f) for f in reached(step) if not any(f.is_relative_to(room) for room in covered)}
    assert outside - exempt == set()


def test_the_steps_without_a_key_have_no_rooms() -> None:
    for name in WITHOUT_A_KEY:
        assert "rooms=" not in (REPOSITORY / "kfp_components" / name / "step.py").read_text()
