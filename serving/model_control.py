"""Control of the models of one Triton server over HTTP, closed to everybody who does not hold its secret."""

from __future__ import annotations

import contextlib
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable

ADMIN_HEADER = "onerec-admin"
RESTRICTED = "model-repository,shared-memory,trace,logging"


class ModelControl:
    """`url`: the server's HTTP side; `timeout_s`: how long a model may load; `log_tail`: what an error ends with."""

    def __init__(self, url: str, *, timeout_s: float, log_tail: Callable[[], str]) -> None:
        self.url, self.timeout_s, self.log_tail = url, timeout_s, log_tail
        self._secret = secrets.token_hex(16)

    def flags(self) -> list[str]:
        """For the server's command line: model control is this process's alone, shared memory and the rest nobody's."""
        closed = f"{RESTRICTED}:{ADMIN_HEADER}={self._secret}"
        return [f"--http-restricted-api={closed}", f"--grpc-restricted-protocol={closed}"]

    def load(self, name: str) -> None:
        """Load a model of the repository. Raises RuntimeError with the server's reason."""
        self._call(f"models/{name}/load")

    def unload(self, name: str) -> None:
        """Take a model out. Raises RuntimeError with the server's reason."""
        self._call(f"models/{name}/unload")

    def ready(self) -> bool:
        """Does the server answer, with every model loaded?"""
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=2),
        ):
            return True
        return False

    def _call(self, call: str) -> None:
        headers = {ADMIN_HEADER: self._secret, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v2/repository/{call}", data=b"{}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s):
                pass
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{call} failed: {error.read().decode(errors='replace')}\n{self.log_tail()}") from None
        except (urllib.error.URLError, TimeoutError) as error:
            raise RuntimeError(f"{call} failed: {error}\n{self.log_tail()}") from None
