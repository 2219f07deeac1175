"""Every `onerec` command of every runbook is one the command line takes; tests/test_day_e2e.py runs them."""

from __future__ import annotations

import re
import shlex

import pytest

from cli.main import parser
from kfp_components.digest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs" / "runbooks").glob("*.md"))
WORDS = {"USER": "7", "START": "2026-01-01T00:00+00:00", "END": "2026-01-02T00:00+00:00", "STEP": "report"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_of_a_runbook_parse_and_its_links_lead_somewhere(page) -> None:
    text = page.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    lines += re.findall(r"`(onerec [a-z][^`]*)`", text)
    for line in lines:
        if line.startswith("onerec "):
            parser().parse_args([WORDS.get(word, word) for word in shlex.split(line, comments=True)[1:]])
    assert lines, "a runbook without a command helps nobody"
    for target in re.findall(r"\]\((\w+)\.md\)", text):
        assert (page.parent / f"{target}.md").is_file(), target
