"""Run the Triton server of the nvidia-pytriton wheel on a rendered model repository, and change its release.

    with TritonServer(release=..., features=..., feature_store=..., log=Path("triton.log")) as server:
        RecommendClient(server.grpc_url).recommend(42, k=10)

The process tree is killed on exit, whatever happened, and dies with its parent (triton_binary.py arranges what the
binary needs).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from serving.config import MODEL_PREFIX, Rollout, ServingConfig
from serving.model_control import ModelControl
from serving.ports import free_ports
from serving.repository import remove, render_recommend, render_release
from serving.routing import Routes, read_routes, wait_acknowledged, write_atomic, write_routes
from serving.triton_binary import copy_backends, die_with_parent, environment, wheel_folder

DRAIN_SECONDS = 2.0
READY_SECONDS = 120.0
SWITCH_SECONDS = 30.0
DEFAULT, NO_ROLLOUT = ServingConfig(), Rollout()


class TritonServer:
    """One tritonserver process. `release` is the release folder it starts with; `switch` changes it while it serves.

    `features` and `feature_store` are the folders of Feast's offline tables and of its registry and online store, `log`
    collects the server's output, `config` says how it runs (serving/config.py). `tls` is (certificate, key), both PEM,
    for gRPC. Ports that are not given are free ones; `address` is where gRPC and the metrics listen, while the HTTP
    side, health apart, is closed to all but this process.

    The thread that enters the block must outlive it: the kernel ends the server with that thread.
    """

    ready_seconds = READY_SECONDS

    def __init__(
        self,
        *,
        release: Path,
        features: Path,
        feature_store: Path,
        log: Path,
        config: ServingConfig = DEFAULT,
        candidate: Path | None = None,
        rollout: Rollout = NO_ROLLOUT,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        address: str = "127.0.0.1",
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.log, self.config, self.address, self.tls = Path(log), config, address, tls
        ports = free_ports(3)
        self.http_port, self.grpc_port = http_port or ports[0], grpc_port or ports[1]
        self.metrics_port = metrics_port or ports[2]
        self.release, self.candidate, self.rollout = Path(release), candidate, rollout
        self._stores = {"features": str(Path(features).resolve()), "feature_store": str(Path(feature_store).resolve())}
        self._shared_memory = f"onerec-{os.getpid()}-{self.grpc_port}"
        self._epoch = 0
        self.control = ModelControl(self.http_url, timeout_s=READY_SECONDS, log_tail=self.log_tail)
        self._loaded: list[str] = []
        self.process: subprocess.Popen | None = None
        self._folder: tempfile.TemporaryDirectory | None = None

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def state(self) -> Path:
        """The folder that `recommend` follows (serving/routing.py)."""
        assert self._folder is not None
        return Path(self._folder.name) / "state"

    @property
    def _repository(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "models"

    def __enter__(self) -> TritonServer:
        try:
            self._start()
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def switch(self, release: Path, candidate: Path | None = None, rollout: Rollout = NO_ROLLOUT) -> None:
        """Serve `release`, and let `candidate` meet traffic as `rollout` says, without failing a request.

        New models are loaded beside the old (unless they are still loaded), `recommend` takes over the routes, and only
        then are models unloaded that neither serve nor are among the last `keep_loaded`. Raises RuntimeError with the
        server's reason when a release does not load; then nothing has changed.
        """
        wanted = [release, *([candidate] if candidate else [])]
        new: list[str] = []
        try:
            for folder in wanted:
                name = MODEL_PREFIX + folder.resolve().name
                if name not in self._loaded and name not in new:
                    new.append(render_release(self._repository, folder, self.config))
                    self.control.load(name)
            before, self._epoch = self.release, self._epoch + 1
            self._write_routes(release, candidate, rollout)
            wait_acknowledged(self.state, self._epoch, self.config.recommend_instances, SWITCH_SECONDS)
        except Exception:
            for name in new:
                with contextlib.suppress(RuntimeError):
                    self.control.unload(name)
                remove(self._repository, name)
            if self._epoch and read_routes(self.state).production != str(self.release.resolve()):
                self._epoch += 1
                self._write_routes(self.release, self.candidate, self.rollout)
            raise
        self.release, self.candidate, self.rollout = release, candidate, rollout
        serving = [MODEL_PREFIX + folder.resolve().name for folder in wanted]
        idle = [name for name in self._loaded if name not in (*serving, MODEL_PREFIX + before.resolve().name)]
        if before.resolve() != release.resolve():
            idle.append(MODEL_PREFIX + before.resolve().name)
        idle = [name for name in idle if name not in serving]
        keep = idle[len(idle) - self.config.keep_loaded :]
        self._loaded = [*keep, *serving]
        if gone := [name for name in idle if name not in keep]:
            time.sleep(DRAIN_SECONDS)  # batches that began on the old routes
            for name in gone:
                self.control.unload(name)
                remove(self._repository, name)

    def block(self, items: list[int]) -> None:
        """Items that no answer may hold from now on, whatever the release."""
        write_atomic(self.state / "blocklist.json", json.dumps({"items": sorted(set(items))}).encode())

    def stop(self) -> None:
        """End the server and its stubs; idempotent."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
            # The group outlives its leader while a stub hangs, so it is killed even after a clean exit.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            for region in Path("/dev/shm").glob(f"{self._shared_memory}-*"):  # what a killed stub left
                region.unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        wheel = wheel_folder()
        self._folder = tempfile.TemporaryDirectory(prefix="onerec-triton-")
        backends, settings = Path(self._folder.name) / "backends", Path(self._folder.name) / "settings.json"
        copy_backends(wheel, backends)
        names = self._models()
        own = {"config": dataclasses.asdict(self.config), "state": str(self.state)}
        settings.write_text(json.dumps(own | self._stores))
        command = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            # explicit, so that a half-written file in the repository is never picked up
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in names),
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}-",
            *self.control.flags(),
            f"--http-address={self.address}",
            f"--grpc-address={self.address}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]
        if self.tls is not None:
            certificate, key = self.tls
            command += ["--grpc-use-ssl=true", f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}"]
        variables = environment() | {
            "ONEREC_SETTINGS": str(settings),
            "OMP_NUM_THREADS": str(self.config.threads),
            # Threads that wait by spinning cost 400 ms a request instead of 25 as soon as the cores are shared.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _models(self) -> list[str]:
        """Render what is there from the start; the names of the models."""
        wanted = [self.release, *([self.candidate] if self.candidate else [])]
        self._loaded = [render_release(self._repository, folder, self.config) for folder in wanted]
        self._write_routes(self.release, self.candidate, self.rollout)
        return [render_recommend(self._repository, self.config), *self._loaded]

    def _write_routes(self, release: Path, candidate: Path | None, rollout: Rollout) -> None:
        routes = Routes(
            epoch=self._epoch,
            production=str(release.resolve()),
            candidate=str(candidate.resolve()) if candidate else "",
            rollout=rollout,
        )
        write_routes(self.state, routes)

    def _wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.ready_seconds
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                raise RuntimeError(
                    f"tritonserver ended with exit status {code} before it was ready:\n{self.log_tail()}"
                )
            if self.control.ready():
                return
            time.sleep(0.2)
        raise RuntimeError(f"tritonserver was not ready after {self.ready_seconds:.0f} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the server's log, with its place."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []
        return "\n".join([*text, f"log: {self.log}"])
