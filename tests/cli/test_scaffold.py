"""What `onerec scaffold-component` writes compiles with KFP, is typed like the others, and overwrites nothing."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

from cli.main import main
from kfp_components.digest import REPOSITORY


def scaffold(tmp_path: Path, *more: str) -> int:
    return main(["scaffold-component", "rerank", "--repository", str(tmp_path), *more])


def test_the_component_has_typed_artifacts_with_digests(tmp_path) -> None:
    assert scaffold(tmp_path, "--inputs", "tables:Dataset", "model:Model", "--output", "ranked:Model") == 0
    file = tmp_path / "kfp_components" / "rerank" / "component.py"
    spec = importlib.util.spec_from_file_location("scaffolded", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    interface = module.rerank.component_spec
    assert set(interface.inputs) == {"day", "root", "source", "seed", "fresh_from", "tables", "tables_digest", "model",
                                     "model_digest"}  # fmt: skip
    assert {n: o.type for n, o in interface.outputs.items()}["ranked"].startswith("system.Model")
    kinds = [type(node).__name__ for node in ast.parse(file.read_text()).body[-1].body]
    assert kinds == ["Expr", "ImportFrom", "ImportFrom", "Return"]


def test_it_is_formatted_and_fails_until_it_is_written(tmp_path) -> None:
    scaffold(tmp_path, "--inputs", "tables:Dataset")
    scaffolded = [str(p) for p in tmp_path.rglob("*.py")]
    assert len(scaffolded) == 4
    ruff = [
        str(Path(sys.executable).with_name("ruff")),
        "check",
        "--ignore",
        "I001",
        "--config",
        str(REPOSITORY / "pyproject.toml"),
    ]
    done = subprocess.run([*ruff, *scaffolded], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    test = next(p for p in scaffolded if "test_rerank" in p)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(REPOSITORY), test]
    assert subprocess.run(run, cwd=REPOSITORY, capture_output=True).returncode == 1


def test_names_and_types_are_checked_and_nothing_is_overwritten(tmp_path, capsys) -> None:
    assert scaffold(tmp_path) == 0 and scaffold(tmp_path) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["scaffold-component", "Re-Rank", "--repository", str(tmp_path)]) == 1
    assert main(["scaffold-component", "other", "--inputs", "x:Table", "--repository", str(tmp_path)]) == 1
    assert "the types are Dataset, Model, Artifact" in capsys.readouterr().err
