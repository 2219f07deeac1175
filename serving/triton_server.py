"""Run the Triton server of the nvidia-pytriton wheel on the model repository beside this file.

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
import os
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

MODEL_REPOSITORY = Path(__file__).parent / "model_repository"
READY_SECONDS = 120.0
_LIBC = ctypes.CDLL(None)  # loaded before any fork
_PR_SET_PDEATHSIG = 1


class TritonServer:
    """One tritonserver process on free local ports. `release` is a release folder, `features` and `feature_store`
    the folders of Feast's offline tables and of its registry and online store; `log` collects the server's output;
    `select` "p_score" lets the release's reward model choose from the beam.

    The thread that enters the block must outlive it: the kernel ends the server with that thread.
    """

    def __init__(
        self,
        *,
        release: Path,
        features: Path,
        feature_store: Path,
        log: Path,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        threads: int = 2,
        select: str = "",
    ) -> None:
        self.log = Path(log)
        ports = _free_ports(3)
        self.http_port, self.grpc_port = http_port or ports[0], grpc_port or ports[1]
        self.metrics_port = metrics_port or ports[2]
        self.settings = {
            "ONEREC_RELEASE_DIR": str(Path(release).resolve()),
            "ONEREC_FEATURES_DIR": str(Path(features).resolve()),
            "ONEREC_FEATURE_STORE_DIR": str(Path(feature_store).resolve()),
            "ONEREC_SELECT": select,
            "OMP_NUM_THREADS": str(threads),
            # Threads that wait by spinning cost 400 ms a request instead of 25 as soon as the cores are shared.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self._shared_memory = f"onerec-{os.getpid()}-{self.grpc_port}"
        self.process: subprocess.Popen | None = None
        self._backends: tempfile.TemporaryDirectory | None = None

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

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
        if self._backends is not None:
            self._backends.cleanup()
            self._backends = None

    def _start(self) -> None:
        wheel = _wheel_folder()
        self._backends = tempfile.TemporaryDirectory(prefix="onerec-triton-")
        backends = Path(self._backends.name)
        _copy_backends(wheel, backends)
        command = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={MODEL_REPOSITORY}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            # explicit, so that a half-written file in the repository is never picked up
            "--model-control-mode=explicit",
            "--load-model=onerec",
            "--load-model=recommend",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}-",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=_environment() | self.settings,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
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
        raise RuntimeError(f"tritonserver was not ready after {READY_SECONDS:.0f} s:\n{self.log_tail()}")

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
