"""TrainJobs against a small API server that knows the few endpoints, and torchrun on this machine."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes import client

from kfp_components.train_job import launch as launching
from kfp_components.train_job.follow import follow
from kfp_components.train_job.launch import Launch, launch
from kfp_components.train_job.manifest import TrainJob, training_runtime

JOB = TrainJob(name="onerec-pretrain-x", arguments=["--seed", "5"], nodes=2, gpus=8, image="repo/onerec@sha256:ab")
JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/onerec/trainjobs"


def _true(kind: str, **more: str) -> dict:
    return {"type": kind, "status": "True", **more}


class Cluster:
    """What the API server answers: `states` of the job one after the other, the last one for ever."""

    def __init__(self, states: list[dict], create: int = 201) -> None:
        self.states, self.create, self.calls, self.jobs = states, create, defaultdict(list), {}
        self.log = ["step 1/8", "step 2/8"]
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: object) -> None:
                raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                cluster.calls["POST"].append((self.path, body))
                self.answer(cluster.create, body if cluster.create == 201 else {"reason": "refused"})

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                cluster.calls["GET"].append(self.path)
                if path.startswith(JOBS):
                    state = cluster.states.pop(0) if len(cluster.states) > 1 else cluster.states[0]
                    self.answer(state.pop("code", 200), {"status": state})
                elif path.endswith("/log"):
                    cluster.log.append(f"step {len(cluster.log) + 1}/8")
                    self.answer(200, "\n".join(cluster.log))
                else:
                    pod = {
                        "metadata": {"name": "onerec-pretrain-x-node-0-0", "creationTimestamp": "2026-01-01T00:00:00Z"}
                    }
                    self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": [pod]})

            def do_DELETE(self) -> None:
                cluster.calls["DELETE"].append(self.path)
                self.answer(200, {})

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> client.ApiClient:
        self.thread.start()
        settings = client.Configuration()
        settings.host = f"http://127.0.0.1:{self.server.server_port}"
        return client.ApiClient(settings)

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


RUNNING = {"jobsStatus": [{"name": "node", "active": 2, "ready": 2}]}


def test_a_job_is_created_followed_and_removed() -> None:
    cluster, said = (
        Cluster([{}, {"conditions": [_true("Suspended")]}, RUNNING, {"conditions": [_true("Complete")]}]),
        [],
    )
    with cluster as api:
        follow(JOB, said.append, api, poll_s=0.01)
    assert cluster.calls["POST"] == [(JOBS, JOB.manifest())]
    assert cluster.calls["DELETE"] == [f"{JOBS}/onerec-pretrain-x"]
    assert said[0] == "TrainJob onerec-pretrain-x: 2 nodes x 8 processes" and said[-1].endswith("is complete")
    assert any("waits in queue" in line for line in said) and any("2 active, 2 ready" in line for line in said)
    steps = [line for line in said if line.startswith("step ")]
    assert steps == [f"step {i + 1}/8" for i in range(len(steps))] and len(steps) > 3  # each line once, in order
    logs = [path for path in cluster.calls["GET"] if "/log" in path]
    assert all("container=node" in path for path in logs)


def test_a_failed_job_is_named_with_its_reason_and_kept_for_a_look() -> None:
    failed = _true("Failed", reason="JobsFailed", message="node 1 ran out of memory")
    cluster = Cluster([RUNNING, {"conditions": [failed]}])
    with (
        cluster as api,
        pytest.raises(RuntimeError, match=r"onerec/onerec-pretrain-x failed: JobsFailed node 1 ran out"),
    ):
        follow(JOB, lambda _: None, api, poll_s=0.01)
    assert not cluster.calls["DELETE"]


def test_a_condition_that_is_false_says_nothing() -> None:
    not_failed = {"type": "Failed", "status": "False"}
    cluster = Cluster([{"conditions": [not_failed]}, {"conditions": [not_failed, _true("Complete")]}])
    said: list[str] = []
    with cluster as api:
        follow(JOB, said.append, api, poll_s=0.01)
    assert said[-1].endswith("is complete") and not [line for line in said if "Failed" in line]


def test_a_second_follower_goes_on_with_the_job_that_is_there() -> None:
    said: list[str] = []
    with Cluster([{"conditions": [_true("Complete")]}], create=409) as api:
        follow(JOB, said.append, api, poll_s=0.01)
    assert "runs already: followed" in said[0]


def test_one_answer_that_is_none_does_not_end_the_watch() -> None:
    cluster = Cluster([RUNNING, {"code": 503}, RUNNING, {"conditions": [_true("Complete")]}])
    said: list[str] = []
    with cluster as api:
        follow(JOB, said.append, api, poll_s=0.01)
    assert said[-1].endswith("is complete") and len(cluster.calls["POST"]) == 1


@pytest.mark.parametrize(
    "create, states, error, said",
    [
        (404, [{}], ValueError, "install Kubeflow Trainer 2.x"),
        (403, [{}], ValueError, "not allowed to create TrainJobs in namespace onerec"),
        (500, [{}], client.ApiException, "500"),
        (201, [{"code": 404}], RuntimeError, "was deleted while it ran"),
    ],
)
def test_refusals_say_what_to_do(create, states, error, said) -> None:
    with Cluster(states, create) as api, pytest.raises(error, match=said):
        follow(JOB, lambda _: None, api, poll_s=0.01)


def test_manifest() -> None:
    made = TrainJob(**{**JOB.__dict__, "queue": "gpu", "environment": {"NCCL_DEBUG": "WARN"}}).manifest()
    trainer = made["spec"]["trainer"]
    assert made["apiVersion"] == "trainer.kubeflow.org/v1alpha1" and made["kind"] == "TrainJob"
    assert made["spec"]["suspend"] and made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert trainer["numNodes"] == 2 and trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    assert trainer["command"] == ["torchrun", "--nproc-per-node", "8", "-m", "models.training.pretrain"]
    assert trainer["args"] == ["--seed", "5"] and trainer["env"] == [{"name": "NCCL_DEBUG", "value": "WARN"}]
    plain = TrainJob(**{**JOB.__dict__, "gpus": 0}).manifest()
    assert (
        not plain["spec"]["suspend"] and "nvidia.com/gpu" not in plain["spec"]["trainer"]["resourcesPerNode"]["limits"]
    )
    runtime = training_runtime(claim="workspace", mount="/var/onerec")
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert job["name"] == pod["containers"][0]["name"] == "node" and len(job["name"]) <= 20
    assert (
        pod["securityContext"]["runAsNonRoot"] and pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/var/onerec"
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"name": "Bad_Name"}, "no Kubernetes name"),
        ({"nodes": 0}, "at least one node"),
        ({"image": "repo/x"}, "no version"),
    ],
)
def test_a_wrong_job_is_refused(changes, said) -> None:
    with pytest.raises(ValueError, match=said):
        TrainJob(**{**JOB.__dict__, **changes})


def test_where_training_runs_is_read_from_the_environment() -> None:
    assert Launch.of({}) == Launch() and Launch.of({}).settings == {}
    four = Launch.of({"ONEREC_TRAINER": "torchrun", "ONEREC_TRAINER_PROCESSES": "4"})
    assert four == Launch(kind="torchrun", processes=4) and four.settings == {"processes": 4}
    pods = Launch.of({"ONEREC_TRAINER": "trainjob", "ONEREC_TRAINER_NODES": "2", "ONEREC_TRAINER_GPUS": "8"})
    assert pods.settings == {"processes": 16}
    with pytest.raises(ValueError, match="ONEREC_TRAINER is 'slurm'"):
        Launch.of({"ONEREC_TRAINER": "slurm"})
    with pytest.raises(ValueError, match="ONEREC_TRAINER_NODES is 'two'"):
        Launch.of({"ONEREC_TRAINER_NODES": "two"})


def test_torchrun_passes_lines_on_and_tells_a_failure(tmp_path, monkeypatch) -> None:
    """A stand-in for the training: what is tested is the launch, tests/models/training/test_distributed.py trains."""
    (tmp_path / "standin.py").write_text(
        "import json, os, pathlib, sys\n"
        "rank, world = os.environ['RANK'], os.environ['WORLD_SIZE']\n"
        "sys.stdout.write(f'process {rank} of {world}\\n')\n"  # one write: torchrun's children share an unbuffered pipe
        "if sys.argv[1] == 'fail': raise SystemExit('no luck')\n"
        "if rank == '0': pathlib.Path(sys.argv[1], 'metrics.json').write_text(json.dumps({'steps': 3}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launching, "MODULE", "standin")
    said: list[str] = []
    how = Launch(kind="torchrun", processes=2)
    assert launch(how, arguments=[str(tmp_path)], name="x", out=tmp_path, progress=said.append) == {"steps": 3}
    assert {"process 0 of 2", "process 1 of 2"} <= set(said)
    with pytest.raises(RuntimeError, match=r"torchrun ended with status 1(.|\n)*no luck"):
        launch(how, arguments=["fail"], name="x", out=tmp_path, progress=said.append)
    monkeypatch.setattr(launching, "_torchrun", lambda *arguments: None)
    with pytest.raises(RuntimeError, match=r"training ended without .*metrics\.json"):
        launch(how, arguments=[str(tmp_path)], name="x", out=tmp_path / "elsewhere", progress=said.append)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch) -> Iterator[None]:
    """The API server is on this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield
