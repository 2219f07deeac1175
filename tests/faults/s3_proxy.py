"""A proxy before an S3 server that does to requests what networks and servers do.

with proxy("http://127.0.0.1:5000") as (endpoint, trouble):
    trouble.append(Trouble(method="PUT", key="channels/", act="cut after"))
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclasses.dataclass(kw_only=True)
class Trouble:
    """What happens to the next `times` requests of this method whose path holds `key`.

    act: a status ("500 InternalError"), "cut after" (done, and the answer lost), "cut before", or "wait 3".
    """

    method: str
    key: str
    act: str
    times: int = 1
    done: int = 0


@contextlib.contextmanager
def proxy(endpoint: str) -> Iterator[tuple[str, list[Trouble]]]:
    troubles: list[Trouble] = []
    lock = threading.Lock()
    upstream = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
        wbufsize = -1

        def handle_expect_100(self) -> bool:
            super().handle_expect_100()
            self.wfile.flush()  # else the client waits a second for it before every upload
            return True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                hit = next((t for t in troubles if t.method == self.command and t.key in self.path and t.times), None)
                if hit:
                    hit.times, hit.done = hit.times - 1, hit.done + 1
            act = hit.act if hit else ""
            if act.startswith("wait"):
                time.sleep(float(act.split()[1]))
            if act == "cut before":
                self.close_connection = True
                return
            if act[:1].isdigit():
                status, code = act.split()
                text = f"<Error><Code>{code}</Code><Message>by the test</Message></Error>".encode()
                self.answer(int(status), {"Content-Type": "application/xml"}, text)
                return
            up = http.client.HTTPConnection(upstream, timeout=20)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
            up.request(self.command, self.path, body, headers)
            got = up.getresponse()
            data = got.read()
            up.close()
            if act == "cut after":
                self.close_connection = True
                return
            with contextlib.suppress(OSError):  # a client that no longer waits
                self.answer(got.status, dict(got.getheaders()), data)

        def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        def log_message(self, *args) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", troubles
    finally:
        server.shutdown()
        server.server_close()
