"""Airflow's UI, Triton and Feast in the background on this machine: `make up`, `make down`.

    python -m cli.local up --root var            python -m cli.local down --root var

All listen on free ports of 127.0.0.1 only. A pid file a process lies in <root>/up; `down` ends the whole trees.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from cli.airflow_run import airflow, import_pools, prepare, settings
from cli.options import SIMULATED, sources
from kfp_components.digest import REPOSITORY
from kfp_components.ending import end_tree
from kfp_components.workspace import Workspace
from releases.channels import read_channel
from releases.manifest import load_release
from releases.object_store import ObjectStore
from releases.stores import open_store
from serving.ports import free_ports

READY_S = 120.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down", "serve"), help="serve: Triton in the foreground")
    parser.add_argument("--root", type=Path, default=Path("var"))
    args = parser.parse_args(argv)
    try:
        {"up": up, "down": down, "serve": serve}[args.action](args.root.resolve())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def up(root: Path) -> None:
    """Start what is not running yet; returns when all answer."""
    home = prepare(root)
    if running(root, "airflow") is None:
        import_pools(home)
        (port,) = free_ports(1)
        env = settings(home) | {
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "ONEREC_ROOT": str(root),
            "ONEREC_DATA": os.environ.get("ONEREC_DATA", str(root / SIMULATED / "logs")),
        }
        launch(root, "airflow", [str(airflow()), "standalone"], env, {"url": f"http://127.0.0.1:{port}"})
        wait(root, "airflow", f"http://127.0.0.1:{port}/api/v2/monitor/health")
    print(f"airflow  {state_of(root, 'airflow')['url']}  (log: {root / 'up' / 'airflow.log'})")
    if (found := production(root)) is None:
        print("triton   not started: no source has a production release yet; run `make daily`")
        return
    if running(root, "feast") is None:
        (port,) = free_ports(1)
        store = str(found[0].feature_store)
        command = [sys.executable, "-m", "feature_repo.server", "--feature-store", store, "--port", str(port)]
        launch(root, "feast", command, dict(os.environ), {"url": f"http://127.0.0.1:{port}"})
        wait(root, "feast", f"http://127.0.0.1:{port}/health")
    print(f"feast    {state_of(root, 'feast')['url']}/get-online-features")
    if running(root, "triton") is None:
        http, grpc, metrics = free_ports(3)
        env = os.environ | {"ONEREC_HTTP_PORT": str(http), "ONEREC_GRPC_PORT": str(grpc)}
        env |= {"ONEREC_METRICS_PORT": str(metrics)}
        command = [sys.executable, "-m", "cli.local", "serve", "--root", str(root)]
        state = {"url": f"127.0.0.1:{grpc}", "release": found[1], "metrics": f"http://127.0.0.1:{metrics}/metrics"}
        launch(root, "triton", command, env, state)
        wait(root, "triton", f"http://127.0.0.1:{http}/v2/health/ready")
    state = state_of(root, "triton")
    print(f"triton   {state['url']} (gRPC), release {state['release']}: onerec recommend USER --url {state['url']}")
    print(f"         a rollout watches it with ONEREC_SERVERS={state['metrics']}")


def down(root: Path) -> None:
    """End what `up` started."""
    for name in ("triton", "feast", "airflow"):
        if (state := running(root, name)) is None:
            print(f"{name:<8} is not running")
        else:
            end_tree(state["pid"])
            print(f"{name:<8} ended")
        pid_file(root, name).unlink(missing_ok=True)


def serve(root: Path) -> None:
    """Hold a Triton server on the production release until SIGTERM."""
    from serving.controller import Controller
    from serving.triton_server import TritonServer

    if (found := production(root)) is None:
        raise ValueError(f"no source in {root} has a production release; run `make daily`")
    workspace, release_id = found
    store = opened(workspace)
    folder, _ = load_release(store, release_id)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = TritonServer(
        release=folder,
        features=workspace.features,
        feature_store=workspace.feature_store,
        log=root / "up" / "tritonserver.log",
        http_port=int(os.environ["ONEREC_HTTP_PORT"]),
        grpc_port=int(os.environ["ONEREC_GRPC_PORT"]),
        metrics_port=int(os.environ["ONEREC_METRICS_PORT"]),
    )
    with server, Controller(server, store):  # follows every promote and rollback
        signal.pause()


def production(root: Path) -> tuple[Workspace, str] | None:
    """The source whose production channel moved last, and its release."""
    found = []
    for workspace in (Workspace(root=str(root), source=source) for source in sources(root)):
        if channel := read_channel(opened(workspace), "production"):
            found.append((channel.history[-1]["at"], workspace, channel.release_id))
    return max(found, key=lambda move: move[0])[1:] if found else None


def opened(workspace: Workspace) -> ObjectStore:
    return open_store(workspace.store, source=workspace.source)


def launch(root: Path, name: str, command: list[str], env: dict[str, str], state: dict[str, str]) -> None:
    log = root / "up" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    born = psutil.Process(process.pid).create_time()
    pid_file(root, name).write_text(json.dumps({"pid": process.pid, "born": born, **state}) + "\n")


def running(root: Path, name: str) -> dict | None:
    """The state in the pid file when that very process is alive (a number used again is another process)."""
    try:
        state = json.loads(pid_file(root, name).read_text())
        process = psutil.Process(state["pid"])
        alive = process.create_time() == state["born"] and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return state if alive else None


def state_of(root: Path, name: str) -> dict:
    """Of a process that has just answered; ValueError when it has died since."""
    if (state := running(root, name)) is None:
        raise ValueError(f"{name} ended again; see {root / 'up' / f'{name}.log'}")
    return state


def wait(root: Path, name: str, url: str) -> None:
    """Until the address answers; ValueError with the log when the process dies or takes too long."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and running(root, name):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise ValueError(f"{name} did not come up; see {root / 'up' / f'{name}.log'}, then `make down` and `make up`")


def pid_file(root: Path, name: str) -> Path:
    return root / "up" / f"{name}.pid"


if __name__ == "__main__":
    sys.exit(main())
