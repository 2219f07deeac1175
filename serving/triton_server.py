"""Run the Triton server of the nvidia-pytriton wheel on a rendered model repository, and change its release.

    with TritonServer(release=..., features=..., feature_store=..., log=Path("triton.log")) as server:
        RecommendClient(server.grpc_url).recommend(42, k=10)

Four things must hold or the Python backend fails, and are arranged here: the folder of the running libpython first in
LD_LIBRARY_PATH and the wheel's own libraries behind it, this environment's bin first in PATH, no PYTHONPATH, and a
backend folder of our own that holds the stub of this Python version. The process tree is killed on exit, whatever
happened, and dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from serving.config import MODEL_PREFIX, Rollout, ServingConfig
from serving.repository import remove, render_recommend, render_release
from serving.routing import Routes, read_routes, wait_acknowledged, write_atomic, write_routes

DRAIN_SECONDS = 2.0
READY_SECONDS = 120.0
SWITCH_SECONDS = 30.0
ADMIN_HEADER = "onerec-admin"
RESTRICTED = "model-repository,shared-memory,trace,logging"
_LIBC = ctypes.CDLL(None)  # loaded before any fork
_PR_SET_PDEATHSIG = 1
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
        ports = _free_ports(3)
        self.http_port, self.grpc_port = http_port or ports[0], grpc_port or ports[1]
        self.metrics_port = metrics_port or ports[2]
        self.release, self.candidate, self.rollout = Path(release), candidate, rollout
        self._stores = {"features": str(Path(features).resolve()), "feature_store": str(Path(feature_store).resolve())}
        self._shared_memory = f"onerec-{os.getpid()}-{self.grpc_port}"
        self._secret, self._epoch = secrets.token_hex(16), 0
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
                    self._admin(f"models/{name}/load")
            before, self._epoch = self.release, self._epoch + 1
            self._write_routes(release, candidate, rollout)
            wait_acknowledged(self.state, self._epoch, self.config.recommend_instances, SWITCH_SECONDS)
        except Exception:
            for name in new:
                with contextlib.suppress(RuntimeError):
                    self._admin(f"models/{name}/unload")
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
                self._admin(f"models/{name}/unload")
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
        wheel = _wheel_folder()
        self._folder = tempfile.TemporaryDirectory(prefix="onerec-triton-")
        backends, settings = Path(self._folder.name) / "backends", Path(self._folder.name) / "settings.json"
        _copy_backends(wheel, backends)
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
            # model control is this process's alone; shared memory and the rest nobody's
            f"--http-restricted-api={RESTRICTED}:{ADMIN_HEADER}={self._secret}",
            f"--grpc-restricted-protocol={RESTRICTED}:{ADMIN_HEADER}={self._secret}",
            f"--http-address={self.address}",
            f"--grpc-address={self.address}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]
        if self.tls is not None:
            certificate, key = self.tls
            command += ["--grpc-use-ssl=true", f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}"]
        environment = _environment() | {
            "ONEREC_SETTINGS": str(settings),
            "OMP_NUM_THREADS": str(self.config.threads),
            # Threads that wait by spinning cost 400 ms a request instead of 25 as soon as the cores are shared.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
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

    def _admin(self, call: str) -> None:
        """Model control. Raises RuntimeError with the server's reason."""
        url = f"{self.http_url}/v2/repository/{call}"
        headers = {ADMIN_HEADER: self._secret, "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=b"{}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=READY_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{call} failed: {error.read().decode(errors='replace')}\n{self.log_tail()}") from None
        except (urllib.error.URLError, TimeoutError) as error:
            raise RuntimeError(f"{call} failed: {error}\n{self.log_tail()}") from None

    def _wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.ready_seconds
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                raise RuntimeError(
                    f"tritonserver ended with exit status {code} before it was ready:\n{self.log_tail()}"
                )
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2),
            ):
                return
            time.sleep(0.2)
        raise RuntimeError(f"tritonserver was not ready after {self.ready_seconds:.0f} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the server's log, with its place."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []
        return "\n".join([*text, f"log: {self.log}"])


def _die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, so that a killed run leaves no server behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wheel_folder() -> Path:
    folder = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver"
    if not (folder / "bin" / "tritonserver").is_file():
        raise ValueError(f"{folder} holds no tritonserver: run `make setup` (it installs the nvidia-pytriton wheel)")
    return folder


def _copy_backends(wheel: Path, target: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(wheel / "backends", target, dirs_exist_ok=True)
    shutil.copy2(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", target / "python")
    (target / "python" / "triton_python_backend_stub").chmod(0o755)


def _environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # The stub's own search path points beside the wheel, and we run a copy of it from elsewhere.
    bundled = Path(sysconfig.get_path("purelib")) / "nvidia_pytriton.libs"
    libraries = [sysconfig.get_config_var("LIBDIR"), str(bundled), os.environ.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return environment


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
