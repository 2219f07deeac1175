"""No secret in the repository: keys by their form, and passwords in addresses (made-up ones have made-up names)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MADE_UP = {"password", "secret", "word"}
KEYS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_[A-Za-z0-9]{30}|xox[abp]-[0-9A-Za-z-]{10}"
    r"|AIza[0-9A-Za-z_-]{35}|eyJ[A-Za-z0-9_-]{20,}\.eyJ"
    r"|(?i:password|passwd|secret|token|api_?key)[\"']?\s*[:=]\s*[\"'](?=[^\"']*\d)[A-Za-z0-9+/_=-]{16,}[\"']"
)
ADDRESS = re.compile(r"://[^/ :@\"'{}$<>]+:([^/ @\"'{}$<>]+)@")


def secrets(text: str) -> list[str]:
    return [m[0] for m in KEYS.finditer(text)] + [m[0] for m in ADDRESS.finditer(text) if m[1] not in MADE_UP]


def test_no_file_of_the_repository_holds_one() -> None:
    listed = subprocess.run(["git", "-C", str(REPOSITORY), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, listed.stdout.split("\0")):
        file = REPOSITORY / name
        if file.is_file() and name != "tests/test_secrets.py" and (held := secrets(file.read_text(errors="ignore"))):
            found[name] = held
    found.pop("tests/k8s/test_manifest_policy.py", None)  # a pattern that looks for them
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN EC PRIVATE KEY-----",
        'password: "hunter2hunter2hunter2"',
        "redis://reader:correct-horse@redis:6379",
    ],
)
def test_one_is_seen(text: str) -> None:
    assert secrets(text)
    assert not secrets("postgresql://user:password@host/db") and not secrets('digest: "0123456789abcdef0123"')
