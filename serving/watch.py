"""Watch a candidate meet traffic: read the metrics of all servers until it has seen enough, or must go.

    found = watch(servers("http://triton.onerec-serving:8002/metrics"), release_id, "canary", answers=500, limit_s=3600)

Each server judges the candidate by itself and takes it out at once (serving/routing.py, Guard); this adds up what they
saw. A name that stands for several addresses (a headless service) is asked at each of them.
"""

from __future__ import annotations

import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

POLL_S, TIMEOUT_S, SILENT_S = 2.0, 5.0, 60.0
_LINE = re.compile(r"^(onerec_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
Samples = dict[tuple[str, str, str], float]  # (metric, release, kind or channel) -> value


class RolloutError(ValueError):
    """The candidate must not go on; the message says what was seen."""


def servers(addresses: str) -> Callable[[], list[str]]:
    """Who is to be asked now: `addresses` with commas between them, each name resolved anew at every call."""
    wanted = [address.strip() for address in addresses.split(",") if address.strip()]
    for address in wanted:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{address!r} is no address of metrics; write http://host:8002/metrics")

    def now() -> list[str]:
        found = []
        for address in wanted:
            parts = urlsplit(address)
            try:
                infos = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
            except OSError:
                continue  # no pod is ready at this moment
            for host in sorted({str(info[4][0]) for info in infos}):
                at = f"[{host}]" if ":" in host else host
                found.append(urlunsplit((parts.scheme, f"{at}:{parts.port or 80}", parts.path, "", "")))
        return sorted(set(found))

    return now


def samples(address: str) -> Samples:
    """Our own metrics of one server. OSError when it does not answer."""
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
        text = answer.read().decode(errors="replace")
    found: Samples = {}
    for name, labels, value in _LINE.findall(text):
        label = dict(_LABEL.findall(labels))
        key = (name, label.get("release", ""), label.get("kind") or label.get("channel", ""))
        found[key] = found.get(key, 0.0) + float(value)
    return found


class Seen:
    """What the servers counted since this began; a server that restarted counts from zero again."""

    def __init__(self, release_id: str, ask: Callable[[str], Samples] = samples) -> None:
        self.release_id, self.ask = release_id, ask
        self.taken, self.aborted, self.answering = False, False, 0
        self.counts = dict.fromkeys(("shadowed", "overlap", "answers", "empty", "illegal"), 0.0)
        self._last: dict[str, Samples] = {}

    def look(self, addresses: list[str]) -> None:
        """One round over the servers."""
        self.answering, first = 0, not self._last  # what was counted before the watch began does not count
        for address in addresses:
            try:
                now = self.ask(address)
            except (OSError, ValueError):
                continue
            self.answering += 1
            before = self._last.get(address, now if first else {})
            self._last[address] = now
            for (name, release, what), value in now.items():
                if release != self.release_id:
                    continue
                if name == "onerec_canary_aborted" and value:
                    self.aborted = True
                if name == "onerec_release_info" and what == "candidate" and value:
                    self.taken = True
                if (count := _COUNTED.get(name)) is not None:
                    old = before.get((name, release, what), 0.0)
                    self.counts[count] += value - old if value >= old else value

    def summary(self) -> dict[str, Any]:
        """Numbers for the record."""
        shadowed = self.counts["shadowed"]
        found = {name: int(self.counts[name]) for name in ("shadowed", "answers", "empty", "illegal")}
        return found | {"overlap": round(self.counts["overlap"] / shadowed, 4) if shadowed else None}


_COUNTED = {
    "onerec_shadow_total": "shadowed",
    "onerec_shadow_overlap_total": "overlap",
    "onerec_answers_total": "answers",
    "onerec_empty_answers_total": "empty",
    "onerec_illegal_items_total": "illegal",
}


def watch(
    addresses: Callable[[], list[str]],
    release_id: str,
    stage: str,
    *,
    answers: int,
    limit_s: float,
    poll_s: float = POLL_S,
    still: Callable[[], bool] = lambda: True,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Until the candidate has seen `answers` requests of its stage ("shadow" or "canary"); returns the numbers.

    `still`: does the rollout still stand (a person may stop it)? RolloutError when a server took the candidate out,
    when nobody loads it, when the requests do not come within `limit_s`, or when no server answers for a minute.
    """
    seen, key = Seen(release_id), {"shadow": "shadowed", "canary": "answers"}[stage]
    started = heard = time.monotonic()
    while True:
        seen.look(addresses())
        now, found = time.monotonic(), seen.summary()
        heard = now if seen.answering else heard
        if seen.aborted:
            raise RolloutError(f"a server took it out by itself after {found[key]} requests; its log has the reason")
        if not still():
            raise RolloutError(f"it was stopped by hand after {found[key]} requests")
        if found[key] >= answers:
            return found | {"seconds": round(now - started, 1), "servers": seen.answering}
        if now - heard > SILENT_S:
            raise RolloutError(f"no server answered for {SILENT_S:.0f} s; is ONEREC_SERVERS right, is serving up?")
        if now - started > limit_s:
            why = "is there traffic?" if seen.taken else "no server took it: each one's log says what it refused"
            raise RolloutError(f"{found[key]} of {answers} requests after {limit_s:.0f} s; {why}")
        progress(f"{stage} {found[key]}/{answers} requests on {seen.answering} servers")
        time.sleep(poll_s)
