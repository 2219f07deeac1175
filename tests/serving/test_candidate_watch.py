"""Adding up what servers count: restarts, several addresses, and every way in which a watch ends."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving import watch as module
from serving.stages import Plan, percents
from serving.watch import RolloutError, Seen, samples, servers, watch

ID, OTHER = "2022-05-05-0123456789ab", "2022-05-04-ba9876543210"


def text(answers: int, *, shadow: int = 0, aborted: int = 0, taken: int = 1) -> str:
    return f"""# HELP onerec_answers_total answers by what was known of the user
onerec_answers_total{{kind="full",release="{ID}"}} {answers}
onerec_answers_total{{kind="cold_start",release="{ID}"}} 1
onerec_answers_total{{kind="full",release="{OTHER}"}} 900
onerec_shadow_total{{release="{ID}"}} {shadow}
onerec_shadow_overlap_total{{release="{ID}"}} {shadow / 4}
onerec_canary_aborted{{release="{ID}"}} {aborted}
onerec_release_info{{channel="candidate",release="{ID}"}} {taken}
nv_inference_count{{model="recommend",version="1"}} 7
"""


class Page:
    """One server's metrics page; `lines` is what it shows next."""

    def __init__(self, lines: str) -> None:
        self.lines, page = lines, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(page.lines.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/metrics"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def pages():
    found = [Page(text(100)), Page(text(50))]
    yield found
    for page in found:
        page.close()


def test_only_the_candidates_new_requests_count_over_all_servers(pages) -> None:
    seen, asked = Seen(ID), servers(", ".join(page.url for page in pages))
    seen.look(asked())
    assert seen.summary()["answers"] == 0 and seen.answering == 2 and seen.taken
    pages[0].lines = text(110, shadow=8)
    seen.look(asked())
    assert seen.summary() == {"shadowed": 8, "answers": 10, "empty": 0, "illegal": 0, "overlap": 0.25}
    pages[0].lines = text(3)  # it was restarted and counts anew
    seen.look(asked())
    assert seen.summary()["answers"] == 10 + 3 and not seen.aborted


def test_a_name_stands_for_all_its_addresses(monkeypatch) -> None:
    found = [(0, 0, 0, "", ("10.0.0.2", 8002)), (0, 0, 0, "", ("10.0.0.1", 8002)), (0, 0, 0, "", ("fd00::1", 8002))]
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: found)
    assert servers("http://triton.serving:8002/metrics")() == [
        "http://10.0.0.1:8002/metrics",
        "http://10.0.0.2:8002/metrics",
        "http://[fd00::1]:8002/metrics",
    ]
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError("no pod")))
    assert servers("http://triton.serving:8002/metrics")() == []
    with pytest.raises(ValueError, match="is no address of metrics"):
        servers("triton:8002")


def follow(pages, **more) -> dict:
    asked = servers(",".join(page.url for page in pages))
    fields = {"answers": 20, "limit_s": 0.5, "poll_s": 0.01, "progress": lambda _: None} | more
    return watch(asked, ID, "canary", **fields)


def test_enough_requests_end_it_and_too_few_are_told(pages) -> None:
    threading.Timer(0.1, lambda: setattr(pages[1], "lines", text(75))).start()
    found = follow(pages)
    assert found["answers"] == 25 and found["servers"] == 2
    with pytest.raises(RolloutError, match="0 of 20 requests after 0 s; is there traffic"):
        follow(pages, limit_s=0.1)
    pages[0].lines = pages[1].lines = text(1, taken=0)
    with pytest.raises(RolloutError, match="no server took it"):
        follow(pages, limit_s=0.1)


def test_one_server_that_takes_it_out_ends_it_and_so_does_a_person(pages) -> None:
    pages[1].lines = text(60, aborted=1)
    with pytest.raises(RolloutError, match="took it out by itself"):
        follow(pages)
    pages[1].lines = text(60)
    with pytest.raises(RolloutError, match="stopped by hand"):
        follow(pages, still=lambda: False)


def test_silence_ends_it(pages, monkeypatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    pages[0].close()
    assert follow(pages[1:], answers=1, limit_s=5, still=lambda: setattr(pages[1], "lines", text(60)) or True)
    with pytest.raises(RolloutError, match="no server answered for 0 s"):
        follow(pages[:1], limit_s=5)


def test_other_lines_are_passed_over(pages) -> None:
    found = samples(pages[0].url)
    assert found["onerec_answers_total", OTHER, "full"] == 900 and not [k for k in found if k[0].startswith("nv_")]


def test_plans_name_what_is_wrong() -> None:
    assert percents("1, 10,50") == (1, 10, 50)
    with pytest.raises(ValueError, match="write them as 1,10,50"):
        percents("one")
    for wrong in ({"percents": ()}, {"percents": (0.0,)}, {"percents": (101.0,)}, {"answers": 0}, {"limit_s": 0}):
        with pytest.raises(ValueError):
            Plan(**{"servers": "http://x", "percents": (1.0,), "answers": 1, "limit_s": 1} | wrong)
