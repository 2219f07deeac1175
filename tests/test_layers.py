"""Imports go downwards only (design, section 2), read from the source of every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("dags", "cli", "kfp_components", "serving", "releases", "feature_repo", "data_quality", "datasets", "models")
MAY_IMPORT: dict[str, set[str]] = {
    "dags": set(),
    "cli": set(ROOMS) - {"dags"},
    "kfp_components": {"serving", "releases", "feature_repo", "data_quality", "datasets", "models"},
    "serving": {"models", "releases"},
    "releases": set(),
    "feature_repo": {"datasets"},
    "data_quality": {"datasets"},
    "datasets": set(),
    "models": set(),
}
# Triton's `recommend` model and its parts read features through Feast; nothing else in serving may.
EXCEPTIONS = {
    ("serving/model_repository/recommend/1/model.py", "feature_repo"),
    *((f"serving/{part}.py", "feature_repo") for part in ("answering", "context", "features", "route")),
}
NEVER_IN: dict[str, set[str]] = {
    "dags": {"torch", "feast", "great_expectations", "kfp"},
    "models": {"airflow", "kfp", "feast", "boto3"},
    "kfp_components": {"airflow"},
    "datasets": {"airflow", "kfp", "feast", "torch", "great_expectations"},
    "releases": {"airflow", "kfp", "feast", "torch", "great_expectations"},
}


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports, also inside functions and strings of TYPE_CHECKING blocks."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the room's name"
            found.add((node.module or "").split(".")[0])
    return found


def files(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    assert files(room), f"{room} holds no code"
    wrong = [
        f"{file.relative_to(REPOSITORY)} imports {name}"
        for file in files(room)
        for name in imported(file) & (set(ROOMS) - MAY_IMPORT[room] - {room})
        if (str(file.relative_to(REPOSITORY)), name) not in EXCEPTIONS
    ]
    assert wrong == []


@pytest.mark.parametrize("room", NEVER_IN)
def test_a_room_keeps_out_what_it_must_not_know(room: str) -> None:
    wrong = [f"{f.relative_to(REPOSITORY)}: {n}" for f in files(room) for n in imported(f) & NEVER_IN[room]]
    assert wrong == []


def test_the_rule_sees_a_wrong_import(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    from kfp_components.step import run_step\n    import torch.nn\n")
    assert imported(tmp_path / "bad.py") == {"kfp_components", "torch"}


def test_nothing_is_pickled() -> None:
    """Weights are safetensors, tables Parquet, metadata JSON."""
    users = [
        str(f.relative_to(REPOSITORY)) for room in ROOMS for f in files(room) if imported(f) & {"pickle", "joblib"}
    ]
    assert users == []


def test_files_stay_small() -> None:
    """A file over 400 lines needs a reason in its header; none has one so far."""
    long = [f"{f.relative_to(REPOSITORY)}" for r in ROOMS for f in files(r) if len(f.read_text().splitlines()) > 400]
    assert long == []
