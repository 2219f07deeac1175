"""A small real HTTP server with the calls of the KFP API that are used, and faults on demand.

with FakeKfp() as kfp: KfpApi(kfp.url).submit_once(...)

`faults` is a list of what the next calls meet: "503", "drop" (the connection is closed without an answer), "half" (half
an answer), "garbage" (no JSON), "created-then-drop" (a POST is done, its answer is lost), "ok". Runs end by `finish`.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeKfp:
    """`runs`: id -> run, in order of creation; `calls`: what was asked for, in order."""

    def __init__(self, port: int = 0) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.bodies: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.faults: list[str] = []
        self.token, self.refused = "", 0  # a bearer token that every call must carry, and how many did not
        self.lock = threading.Lock()
        self.barrier: threading.Barrier | None = None  # two racing submissions meet here before either is created
        self._start(port)

    def _start(self, port: int) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.answer(self, "GET")

            def do_POST(self) -> None:
                fake.answer(self, "POST")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> FakeKfp:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def restart(self) -> None:
        """On the same port, with the runs it had."""
        self._start(self.port)

    def finish(self, run_id: str, state: str = "SUCCEEDED", failed: str = "") -> None:
        self.runs[run_id] |= {"state": state}
        if failed:
            self.runs[run_id]["run_details"] = {"task_details": [{"display_name": failed, "state": "FAILED"}]}

    def live(self) -> list[str]:
        return [run_id for run_id, run in self.runs.items() if run["state"] in ("PENDING", "RUNNING")]

    def answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length) or b"{}")
        path = urllib.parse.urlsplit(handler.path)
        with self.lock:
            self.calls.append(f"{method} {path.path.removeprefix('/apis/v2beta1')}")
            fault = self.faults.pop(0) if self.faults else "ok"
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            self.refused += 1
            return self._send(handler, 401, {"error": "token expired"})
        if fault == "503":
            return self._send(handler, 503, {"error": "overloaded"})
        if fault == "drop":
            return handler.connection.close()
        code, found = self._do(method, path.path.removeprefix("/apis/v2beta1"), urllib.parse.parse_qs(path.query), body)
        if fault == "created-then-drop":
            return handler.connection.close()
        if fault in ("half", "garbage"):
            raw = json.dumps(found).encode() if fault == "half" else b"<html>gateway</html>"
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(raw)))
            handler.end_headers()
            handler.wfile.write(raw[: len(raw) // 2] if fault == "half" else raw)
            return handler.connection.close()
        self._send(handler, code, found)

    def _do(self, method: str, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, dict]:
        if method == "POST" and path == "/runs":
            if self.barrier is not None:
                self.barrier.wait(timeout=10)
            with self.lock:
                run_id = f"run-{len(self.runs):03d}"
                self.runs[run_id] = {
                    "run_id": run_id,
                    "display_name": body["display_name"],
                    "state": "RUNNING",
                    "created_at": f"2026-01-01T00:00:{len(self.runs):02d}Z",
                }
                self.bodies[run_id] = body
            return 200, self.runs[run_id]
        if method == "GET" and path == "/runs":
            name = json.loads(query["filter"][0])["predicates"][0]["string_value"]
            found = [run for run in self.runs.values() if run["display_name"] == name]
            start = int(query.get("page_token", ["0"])[0] or 0)  # pages of one run each
            more = {"next_page_token": str(start + 1)} if start + 1 < len(found) else {}
            return 200, {"runs": found[start : start + 1]} | more
        run_id = path.removeprefix("/runs/").removesuffix(":terminate")
        if run_id not in self.runs:
            return 404, {"error": f"run {run_id} not found"}
        if path.endswith(":terminate"):
            if self.runs[run_id]["state"] in ("PENDING", "RUNNING"):
                self.runs[run_id]["state"] = "CANCELED"
            return 200, {}
        return 200, self.runs[run_id]

    def _send(self, handler: BaseHTTPRequestHandler, code: int, found: dict) -> None:
        raw = json.dumps(found).encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)


def wait_until(true, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
