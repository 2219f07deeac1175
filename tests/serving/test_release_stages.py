"""Shadow, canary and promote of a release, as the release DAG runs them, before a real Triton server with requests.

A good candidate goes all the way and ends in production; bad ones are taken out, and production answers on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli.main import main
from kfp_components.canary.step import run as run_canary
from kfp_components.context import Run
from kfp_components.promote.step import run as run_promote
from kfp_components.shadow.step import run as run_shadow
from kfp_components.step import Outcome, run_step
from kfp_components.workspace import Workspace
from releases import rollout
from releases.channels import promote, read_channel
from releases.describe import show, show_text
from serving.client import RecommendClient
from serving.config import Rollout, ServingConfig
from serving.controller import Controller
from serving.triton_server import TritonServer
from serving.watch import RolloutError
from tests.feature_repo.conftest import DAYS
from tests.serving.conftest import World, build_world, publish_release
from tests.serving.test_change_under_load import Load

DAY = DAYS[-1].isoformat()
GUARD = Rollout(min_requests=5, window=50, max_slowdown=1000)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> World:
    """A world whose store lies where a workspace has it; production names the first release."""
    base = tmp_path_factory.mktemp("stages") / "s"
    world = build_world(base)
    promote(world.store, world.release.name)
    return world


@pytest.fixture(scope="module")
def server(own, tmp_path_factory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    folders = {"features": own.features, "feature_store": own.feature_store}
    with TritonServer(release=own.release, log=log, config=ServingConfig(threads=1), **folders) as running:
        yield running


class Release:
    """The steps of a release's DAG on a workspace of its own, whose store is the world's."""

    def __init__(self, own: World, root: Path, release_id: str, server: TritonServer, passed: bool = True) -> None:
        self.workspace = Workspace(root=str(root), source="s")
        self.workspace.store.parent.mkdir(parents=True)
        self.workspace.store.symlink_to(own.store.root)
        self.run = Run(workspace=self.workspace, day=DAY, seed=0)
        self.release_id, self.servers = release_id, server.metrics_url
        self.release = self._outcome("publish", {"release_id": release_id})
        self.decision = self._outcome("gate", {"release_id": release_id, "passed": passed, "checks": []})

    def _outcome(self, step: str, metrics: dict) -> Outcome:
        def body(out: Path, progress) -> dict:
            (out / "what.txt").write_text(self.release_id)
            return metrics

        rooms, settings = ("datasets/errors.py",), {}
        return run_step(
            workspace=self.workspace, day=DAY, step=step, inputs=[], rooms=rooms, settings=settings, body=body
        )

    def meet(self, stage, percents: str, *, answers: int = 20, hours: float = 60 / 3600) -> Outcome:
        given = {"servers": self.servers, "percents": percents, "answers": answers, "hours": hours}
        return stage(self.run, release=self.release, decision=self.decision, **given)

    def promote(self) -> Outcome:
        return run_promote(self.run, release=self.release, decision=self.decision, servers=self.servers)


def next_day(own: World, folder: Path, seed: int) -> Path:
    """A release as the next day's training leaves it: production's weights, moved a little."""
    folder.mkdir()
    weights = load_file(own.files["model/model.safetensors"])
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            weights[name] = tensor + 1e-3 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    with safe_open(own.files["model/model.safetensors"], "pt") as file:
        save_file(weights, folder / "model.safetensors", file.metadata())
    return publish_release(own.store, own.files | {"model/model.safetensors": folder / "model.safetensors"})


@contextlib.contextmanager
def serving(own: World, server: TritonServer) -> Iterator[tuple[Load, list[str]]]:
    """The server follows the store, and two clients ask without pause."""
    lines: list[str] = []
    with Controller(server, own.store, rollout=GUARD, log=lines.append), Load(server.grpc_url) as load:
        yield load, lines


def test_a_good_candidate_meets_traffic_and_ends_in_production(own, server, tmp_path) -> None:
    before, release_id = own.release.name, next_day(own, tmp_path / "model", 10).name
    day = Release(own, tmp_path / "var", release_id, server)
    with pytest.raises(ValueError, match=r"has not passed .nobody began it.; run shadow and canary first"):
        day.promote()
    with serving(own, server) as (load, lines):
        shadow = day.meet(run_shadow, "100").metrics
        assert {answer.release_id for _, answer in load.answers} == {before}  # nobody saw the candidate
        with pytest.raises(ValueError, match=r"has not passed .it is at shadow"):
            day.promote()
        canary = day.meet(run_canary, "30,60").metrics
        assert {answer.release_id for _, answer in load.answers} == {before, release_id}
        moved = day.promote().metrics
        with RecommendClient(server.grpc_url) as client:
            while client.recommend(1, 5).release_id != release_id:
                load.more(1)
    assert not load.errors
    assert shadow["shadowed"] >= 20 and 0.02 <= shadow["overlap"] <= 1
    assert canary["answers"] >= 20 and canary["illegal"] == canary["empty"] == 0
    assert moved["channels"] == {"candidate": release_id, "production": release_id}
    history = [(m["stage"], m["percent"]) for m in rollout.read(own.store).history]
    assert history == [("shadow", 100), ("canary", 30), ("canary", 60), ("passed", 0)]
    assert any("shadow 100 %" in line for line in lines) and any("canary 60 %" in line for line in lines)
    text = show_text(show(own.store, release_id))
    assert "rollout " in text and "canary 60 %: canary at 60 % (answers" in text
    assert day.meet(run_canary, "30,60").reused  # clearing the task asks nobody again
    promote(own.store, before, reason="for the next test")


def test_a_candidate_that_fails_is_taken_out_and_production_answers_on(own, server, tmp_path) -> None:
    """Its model goes away under it once shadow is over, so that every answer of it fails; clients never notice."""
    candidate = next_day(own, tmp_path / "model", 11)
    day = Release(own, tmp_path / "var", candidate.name, server)
    with serving(own, server) as (load, _):
        day.meet(run_shadow, "100")
        server.control.unload(f"onerec-{candidate.name}")
        asked = len(load.answers)
        with pytest.raises(RolloutError, match=r"taken out, production is untouched: canary at 50 %.*by itself"):
            day.meet(run_canary, "50")
        with pytest.raises(ValueError, match=r"has not passed .it is at stopped"):
            day.promote()
        load.more(20)
        assert not load.errors and {a.release_id for _, a in load.answers[asked:]} == {own.release.name}
        while server.candidate is not None:
            load.more(1)
    assert read_channel(own.store, "production").release_id == own.release.name
    with pytest.raises(ValueError, match=r"was stopped: canary at 50 %.*not tried again"):
        Release(own, tmp_path / "again", candidate.name, server).meet(run_shadow, "100")


def test_a_candidate_that_does_not_load_meets_nobody(own, server, tmp_path) -> None:
    """Triton's Python model ends with an error when it loads: the weights belong to another configuration."""
    files = dict(own.files)
    broken = tmp_path / "config.json"
    broken.write_text(
        Path(own.files["model/config.json"]).read_text().replace('"decoder_layers": ', '"decoder_layers": 1')
    )
    candidate = publish_release(own.store, files | {"model/config.json": broken})
    day = Release(own, tmp_path / "var", candidate.name, server)
    with serving(own, server) as (load, lines):
        with pytest.raises(RolloutError, match="0 of 20 requests after 5 s; no server took it"):
            day.meet(run_shadow, "100", hours=5 / 3600)
        load.more(20)
    assert not load.errors and {a.release_id for _, a in load.answers} == {own.release.name}
    assert any(f"release {candidate.name} refused, serving on with {own.release.name}" in line for line in lines)
    assert rollout.read(own.store).stage == "stopped"


def test_a_person_stops_it_and_a_failed_gate_lets_nothing_out(own, server, tmp_path) -> None:
    candidate = next_day(own, tmp_path / "model", 12)
    day = Release(own, tmp_path / "var", candidate.name, server)
    where = ["--root", day.workspace.root, "--source", "s"]
    with serving(own, server) as (load, _):
        timer = threading.Timer(2.0, main, [["release", "rollout", "--stop", "odd items", *where]])
        timer.start()
        with pytest.raises(RolloutError, match="stopped by hand"):
            day.meet(run_shadow, "100", answers=10**9)
        timer.join()
        assert not load.errors
    assert rollout.stopped(rollout.read(own.store), candidate.name) == "odd items"
    failed = Release(own, tmp_path / "failed", candidate.name, server, passed=False)
    assert failed.meet(run_shadow, "100").metrics["skipped"] == "a gate failed"
    assert failed.promote().metrics["channels"]["production"] == own.release.name


def test_a_candidate_that_answers_something_else_is_stopped_in_shadow(own, server, tmp_path) -> None:
    """Another model, from another seed: its answers share next to nothing with production's."""
    day = Release(own, tmp_path / "var", own.other.name, server)
    with serving(own, server) as (load, _):
        with pytest.raises(RolloutError, match=r"share 0\.0.* of production's items"):
            day.meet(run_shadow, "100")
        assert {answer.release_id for _, answer in load.answers} == {own.release.name}
    assert rollout.read(own.store).stage == "stopped"
