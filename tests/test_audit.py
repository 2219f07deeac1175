"""The audit of the locks (`make audit`), with pip-audit as it is and a data base of weaknesses of our own making."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PIP_AUDIT = Path(os.environ.get("ONEREC_PIP_AUDIT") or REPOSITORY / ".venv/audit/bin/pip-audit")
needs_it = pytest.mark.skipif(not PIP_AUDIT.is_file(), reason="pip-audit is not set up: run `make audit` once")


@contextlib.contextmanager
def data_base(weak: str) -> Iterator[tuple[str, set[str]]]:
    """OSV's query API, in which one package is weak at every version; and the packages that were asked about."""
    asked: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            asked.add(name)
            package = {"name": name, "ecosystem": "PyPI"}
            vulnerability = {
                "id": "PYSEC-2026-1",
                "modified": "2026-01-01T00:00:00Z",
                "details": "made up",
                "affected": [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}],
            }
            body = json.dumps({"vulns": [vulnerability]} if name == weak else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query", asked
        server.shutdown()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"ONEREC_OSV_URL": url}
    return subprocess.run([REPOSITORY / "locks/audit.sh", PIP_AUDIT], capture_output=True, text=True, env=env)


@needs_it
def test_every_package_of_every_lock_is_asked_about_and_a_weak_one_is_named() -> None:
    with data_base("gunicorn") as (url, asked):
        done = audit(url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gunicorn" in done.stderr and "PYSEC-2026-1" in done.stderr
    clean = {file.name for file in (REPOSITORY / "locks").glob("*.txt")} - {"ml.txt"}
    assert all(f"audit   {name}: nothing known" in done.stdout for name in clean)
    assert {"apache-airflow", "torch", "nvidia-pytriton", "bandit", "pip-audit"} <= asked


@needs_it
def test_without_the_data_base_it_says_that_nothing_was_audited() -> None:
    done = audit("http://127.0.0.1:1/v1/query")
    assert (done.returncode, done.stdout) == (0, "") and "NOT DONE" in done.stderr
