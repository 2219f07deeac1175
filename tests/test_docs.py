"""What the pages and the comments name exists: links and paths of our own; and the README leads to every page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = "benchmarks cli dags data_quality datasets docs feature_repo k8s kfp_components models releases serving tests"
NAMED = re.compile(rf"(?<![\w/.<>-])(?:{ROOMS.replace(' ', '|')})/[\w./*-]+\.(?:md|py)\b")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
INVENTED = {"datasets/adapters/shop.py", "datasets/adapters/my_shop.py"}  # an adapter that a reader or a test writes


def files(*endings: str) -> list[Path]:
    found = [*REPOSITORY.glob("*"), *(path for room in ROOMS.split() for path in (REPOSITORY / room).rglob("*"))]
    return sorted(path for path in found if path.suffix in endings and path.is_file())


def links(page: Path) -> list[Path]:
    """Files that a page links to, links to the web and examples in code blocks left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).replace("\\_", "_")
    return [page.parent / target for target in LINK.findall(text) if "://" not in target]


def test_links_of_the_pages_lead_somewhere() -> None:
    assert [f"{page.name}: {target}" for page in files(".md") for target in links(page) if not target.exists()] == []


def test_paths_that_pages_and_comments_name_exist() -> None:
    missing = [
        f"{file.relative_to(REPOSITORY)}: {path}"
        for file in files(".md", ".py", ".toml")
        for path in NAMED.findall(file.read_text())
        if path not in INVENTED and not any(REPOSITORY.glob(path))
    ]
    assert missing == []


def test_the_readme_leads_to_every_page() -> None:
    seen: set[Path] = set()
    open_pages = [REPOSITORY / "README.md"]
    while open_pages:
        page = open_pages.pop().resolve()
        if page not in seen:
            seen.add(page)
            open_pages += [target for target in links(page) if target.suffix == ".md" and target.is_file()]
    pages = [page for page in files(".md") if page.is_relative_to(REPOSITORY / "docs")]
    assert [str(page.relative_to(REPOSITORY)) for page in pages if page not in seen] == []


def test_every_environment_variable_is_explained() -> None:
    """Those that a process sets for its own children are not for people."""
    internal = {f"ONEREC_{name}" for name in ("SETTINGS", "HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "SCHEDULE_UNTIL")}
    code = [file for file in files(".py") if file.relative_to(REPOSITORY).parts[0] not in ("tests", "benchmarks")]
    read = {
        node.value
        for file in code
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch(r"ONEREC_[A-Z_]*[A-Z]", str(node.value))
    }
    explained = set(re.findall(r"ONEREC_[A-Z_]*[A-Z]", (REPOSITORY / "docs" / "settings.md").read_text()))
    assert len(read) > 20 and read - internal - explained == set()
