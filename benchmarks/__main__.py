"""The benchmarks of this folder, each with the line that says what it measures and the command that runs it.

python -m benchmarks            (or: make bench, make bench BENCH=benchmarks.features.lifelong ARGS="--help")
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def benchmarks() -> list[tuple[str, str]]:
    """(module, first line of its docstring) of every module here that is a command."""
    found = []
    for file in sorted(FOLDER.rglob("*.py")):
        text = file.read_text()
        if file != Path(__file__) and 'if __name__ == "__main__"' in text:
            module = ".".join(file.relative_to(FOLDER.parent).with_suffix("").parts)
            found.append((module, (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]))
    return found


def main() -> int:
    for module, says in benchmarks():
        print(f"{module}\n    {says}")
    print("\nEach has --help. Run one: make bench BENCH=<module> ARGS='...'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
