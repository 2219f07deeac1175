"""One server changes its release while it is asked: no failed and no mixed request; damaged releases and bad candidates
are refused or taken out; items come and go; model control is closed to clients."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import tritonclient.grpc as triton

from datasets.partitions import PART, partition_path
from models.onerec.config import onerec_laptop
from models.onerec.model import OneRec
from models.training.checkpoint import Tokenizer, save_model
from releases.channels import promote, rollback
from releases.manifest import load_release
from serving import blocklist
from serving.client import RecommendClient
from serving.config import Rollout, ServingConfig
from serving.controller import Controller
from serving.export.package import export_release
from serving.export.parity import real_users
from serving.model_control import ADMIN_HEADER
from serving.refresh_items import refresh_items
from serving.routing import aborted
from serving.triton_server import TritonServer
from tests.feature_repo.conftest import DAYS, end_of
from tests.serving.conftest import N_ITEMS, STATIC_FEATURES, build_world, publish_release

NOW = int(end_of(DAYS[-1]).timestamp()) + 1


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A world whose channels these tests move."""
    world = build_world(tmp_path_factory.mktemp("change"))
    promote(world.store, world.release.name)
    return world


@pytest.fixture(scope="module")
def server(own, tmp_path_factory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    folders = {"features": own.features, "feature_store": own.feature_store}
    with TritonServer(release=own.release, log=log, config=ServingConfig(threads=1), **folders) as running:
        yield running


class Load:
    """Two threads that ask without pause; every answer's release and items, every error."""

    def __init__(self, url: str) -> None:
        self.url, self.stop, self.answers, self.errors = url, threading.Event(), [], []
        self.threads = [threading.Thread(target=self._ask, args=(start,)) for start in (0, 25)]

    def _ask(self, user: int) -> None:
        with RecommendClient(self.url, retries=0) as client:
            while not self.stop.is_set():
                user = (user + 1) % 50
                try:
                    self.answers.append((user, client.recommend(user, 8, now_s=NOW)))
                except Exception as error:
                    self.errors.append(error)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def more(self, count: int) -> None:
        """Waits for so many further answers; gives up at the first error."""
        wanted = len(self.answers) + count
        while len(self.answers) < wanted and not self.errors:
            time.sleep(0.01)

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def step_until(controller: Controller, client: RecommendClient, release: str, limit_s: float = 60.0) -> float:
    started = time.monotonic()
    while client.recommend(1, 5).release_id != release:
        assert time.monotonic() - started < limit_s
        controller.step()
    return time.monotonic() - started


def test_promote_and_rollback_under_load(own, server):
    """Answers of a release are those that it gave alone: were one mixed, its items or scores would be neither's."""
    controller = Controller(server, own.store, log=lambda _: None)
    with RecommendClient(server.grpc_url) as client:
        alone = {own.release.name: {u: client.recommend(u, 8, now_s=NOW) for u in range(50)}}
        with Load(server.grpc_url) as load:
            for move in (promote, rollback, promote):
                load.more(20)
                wanted = own.release.name if move is rollback else own.other.name
                move(own.store, *([] if move is rollback else [wanted]))
                step_until(controller, client, wanted)
            load.more(20)
        alone[own.other.name] = {u: client.recommend(u, 8, now_s=NOW) for u in range(50)}
        rollback(own.store)
        step_until(controller, client, own.release.name)
    assert not load.errors
    assert {answer.release_id for _, answer in load.answers} == set(alone)
    for user, answer in load.answers:
        expected = alone[answer.release_id][user]
        np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-3)


def third_release(own, folder: Path, seed: int, **changes: Path) -> Path:
    """Another model over the same tokenizer, published."""
    tokenizer = Tokenizer.load(own.release / "tokenizer")
    sizes = {"codebook_size": tokenizer.codebook_size, "items": N_ITEMS, "static_features": STATIC_FEATURES}
    folder.mkdir()
    torch.manual_seed(seed)
    save_model(OneRec(onerec_laptop(**sizes), torch.from_numpy(tokenizer.sid_NL)), folder)
    files = {f"model/{name}": folder / name for name in ("model.safetensors", "config.json")}
    return publish_release(own.store, own.files | files)


def test_one_flipped_byte_is_refused_and_the_old_release_goes_on(own, server, tmp_path):
    damaged = third_release(own, tmp_path / "model", 3)
    promote(own.store, damaged.name)
    data = bytearray((damaged / "model" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model" / "model.safetensors").write_bytes(data)
    lines: list[str] = []
    controller = Controller(server, own.store, report=tmp_path / "report.json", log=lines.append)
    with RecommendClient(server.grpc_url) as client:
        with Load(server.grpc_url) as load:
            controller.step()
            controller.step()  # not tried twice
            # Past the controller, the server itself refuses it too.
            with pytest.raises(RuntimeError, match=r"model/model\.safetensors: expected sha256"):
                server.switch(damaged)
        assert len(lines) == 1 and "model/model.safetensors: expected sha256" in lines[0]
        assert damaged.name in (tmp_path / "report.json").read_text()
        assert not load.errors and {a.release_id for _, a in load.answers} == {own.release.name}
        rollback(own.store)
        controller.step()
        assert client.recommend(1, 5).release_id == own.release.name


def test_a_candidate_is_compared_and_takes_its_share(own, server):
    rollout = Rollout(shadow_percent=100, canary_percent=40, min_requests=10, max_slowdown=1000)
    promote(own.store, own.other.name, channel="candidate")
    Controller(server, own.store, rollout=rollout).step()
    with RecommendClient(server.grpc_url) as client:
        found = [client.recommend(user, 8, now_s=NOW).release_id for user in range(100)]
        assert found == [client.recommend(user, 8, now_s=NOW).release_id for user in range(100)]
    assert 20 <= found.count(own.other.name) <= 60 and set(found) == {own.release.name, own.other.name}
    series = f'onerec_shadow_total{{release="{own.other.name}"}}'
    deadline = time.monotonic() + 20
    while series not in (text := metrics(server)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert series in text and f'onerec_shadow_overlap_total{{release="{own.other.name}"}}' in text


def test_a_bad_candidate_is_taken_out_by_itself(own, server, tmp_path):
    """Its model is unloaded under it, so that it fails at every request; clients never notice."""
    controller = Controller(server, own.store, rollout=Rollout(canary_percent=100, min_requests=5, window=20))
    candidate = third_release(own, tmp_path / "model", 4)
    promote(own.store, candidate.name, channel="candidate")
    controller.step()
    server.control.unload(f"onerec-{candidate.name}")
    with RecommendClient(server.grpc_url) as client:
        answers = [client.recommend(user, 5, now_s=NOW) for user in range(20)]
    assert {answer.release_id for answer in answers} == {own.release.name}
    assert "failed, or came back empty" in (aborted(server.state, candidate.name) or "")
    lines: list[str] = []
    controller._log = lines.append
    controller.step()
    assert any(f"{candidate.name} refused" in line for line in lines)
    assert server.candidate is None
    assert f'onerec_canary_aborted{{release="{candidate.name}"}} 1' in metrics(server)


def test_blocked_items_leave_at_once(own, server):
    controller = Controller(server, own.store)
    with RecommendClient(server.grpc_url) as client:
        first = client.recommend(2, 8, now_s=NOW).item_ids
        blocklist.block(own.store, first[:3], reason="taken down")
        controller.step()
        deadline = time.monotonic() + 5
        while set(client.recommend(2, 8, now_s=NOW).item_ids) & set(first[:3]) and time.monotonic() < deadline:
            time.sleep(0.02)
        after = client.recommend(2, 8, now_s=NOW).item_ids
        assert not set(after) & set(first[:3]) and len(after) == 8
        blocklist.unblock(own.store, first[:3], reason="restored")
        controller.step()
        time.sleep(0.3)
        assert client.recommend(2, 8, now_s=NOW).item_ids == first
    with pytest.raises(ValueError, match="is not blocked"):
        blocklist.unblock(own.store, [first[0]], reason="again")
    assert [change["change"] for change in blocklist.read(own.store).history] == ["block", "unblock"]


def test_new_items_are_served_without_training_and_withdrawn_ones_leave(own, server, tmp_path):
    table = pq.read_table(own.items)
    new = table.slice(5, 10).set_column(
        table.column_names.index("item_id"), table.schema.field("item_id"), pa.array(range(1000, 1010))
    )
    kept = table.filter(pa.array([item >= 20 for item in table["item_id"].to_pylist()]))
    pq.write_table(pa.concat_tables([kept, new]), tmp_path / "items.parquet")
    base = own.release.name
    lines: list[str] = []
    release, counts = refresh_items(store=own.store, base=base, items=tmp_path / "items.parquet", progress=lines.append)
    assert counts == {"new": 10, "withdrawn": 20} and release != base
    before, after = (Tokenizer.load(own.store.local(f"releases/{r}") / "tokenizer") for r in (base, release))
    np.testing.assert_array_equal(after.sid_NL[: len(before.sid_NL)], before.sid_NL)
    assert after.catalogue.item_ids[-10:].tolist() == list(range(1000, 1010))
    again, _ = refresh_items(store=own.store, base=base, items=tmp_path / "items.parquet", progress=lines.append)
    assert again == release
    promote(own.store, release)
    controller = Controller(server, own.store)
    with RecommendClient(server.grpc_url) as client:
        step_until(controller, client, release)
        everything = set(client.recommend(3, 300, now_s=NOW).item_ids)
        rollback(own.store)
        step_until(controller, client, base)
    assert set(range(1000, 1010)) <= everything
    assert not set(range(20)) & everything


def test_the_exported_program_is_served_and_answers_as_the_model_does(own, server, tmp_path):
    """One model twice, with and without a package; after a change of the items it is eager again, and says so."""
    tokenizer = Tokenizer.load(own.release / "tokenizer")
    sizes = {"codebook_size": tokenizer.codebook_size, "items": N_ITEMS, "static_features": STATIC_FEATURES}
    torch.manual_seed(5)
    config = dataclasses.replace(onerec_laptop(**sizes), encoder_layers=1, decoder_layers=1)
    model = OneRec(config, torch.from_numpy(tokenizer.sid_NL)).eval()
    (tmp_path / "model").mkdir()
    (tmp_path / "serving").mkdir()
    save_model(model, tmp_path / "model")
    users = real_users(partition_path(own.features / "training", DAYS[-1]) / PART, tokenizer, model.config, 20)
    report = export_release(
        model=model, tokenizer=tokenizer, users=users, out=tmp_path / "serving", progress=lambda _: None
    )
    assert report["cpu"]["passed"]
    made = {str(p.relative_to(tmp_path)): p for p in tmp_path.rglob("*") if p.is_file()}
    plain = {name: path for name, path in made.items() if name.startswith("model/")}
    eager, packaged = (publish_release(own.store, own.files | files) for files in (plain, made))
    answers = []
    with RecommendClient(server.grpc_url) as client:
        for release in (eager, packaged):
            server.switch(release)
            asked = [(user, {"k": k, "rerank": k == 5}) for user in (0, 1, 2, 10**6) for k in (5, 64, N_ITEMS)]
            answers.append([client.recommend(user, now_s=NOW, **options) for user, options in asked])
            assert {answer.release_id for answer in answers[-1]} == {release.name}
    server.switch(own.release)
    for one, other in zip(*answers):
        assert one.item_ids == other.item_ids and one.sids == other.sids
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    lines = server.log.read_text().splitlines()
    for release, kind in ((eager, "eager"), (packaged, "package")):
        assert any(f"release {release.name}, {{'kind': '{kind}'" in line for line in lines)
    table = pq.read_table(own.items)
    pq.write_table(table.slice(1), tmp_path / "items.parquet")
    refreshed, _ = refresh_items(store=own.store, base=packaged.name, items=tmp_path / "items.parquet")
    manifest = load_release(own.store, refreshed)[1]
    assert not [entry.path for entry in manifest.files if entry.path.startswith("serving/")]
    assert "served eagerly" in manifest.summaries["export"]["reason"]


def test_model_control_and_shared_memory_are_closed_to_clients(server, own):
    raw = triton.InferenceServerClient(server.grpc_url)
    calls = [
        lambda: raw.unload_model("recommend"),
        lambda: raw.load_model("recommend"),
        lambda: raw.get_model_repository_index(),
        lambda: raw.register_system_shared_memory("x", "/x", 8),
        lambda: raw.get_system_shared_memory_status(),
        lambda: raw.get_cuda_shared_memory_status(),
        lambda: raw.update_log_settings({"log_info": False}),
    ]
    with contextlib.closing(raw):
        for call in calls:
            with pytest.raises(triton.InferenceServerException, match="is restricted"):
                call()
        with pytest.raises(triton.InferenceServerException, match="is restricted"):
            raw.unload_model("recommend", headers={ADMIN_HEADER: "guess"})
    for path in ("repository/index", "repository/models/recommend/unload", "systemsharedmemory/region/x/register"):
        request = urllib.request.Request(f"{server.http_url}/v2/{path}", data=b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=5)
        assert refusal.value.code == 403
    with RecommendClient(server.grpc_url) as client:
        assert client.ready() and client.recommend(1, 5).item_ids


def metrics(server: TritonServer) -> str:
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
        return answer.read().decode()
