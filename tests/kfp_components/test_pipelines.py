"""The pipelines compile, are wired as the day goes, cache only what may be cached, and run for real."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from kfp_components.command.step import run as run_command
from kfp_components.compile import compile_all, compile_pipeline, drift
from kfp_components.context import Run
from kfp_components.digest import REPOSITORY
from kfp_components.image import LOCK, check_image
from kfp_components.pipelines.wiring import MOUNT, WRITES_FEATURES
from kfp_components.resources import RESOURCES
from kfp_components.run import arguments, main, without_retries
from kfp_components.workspace import IMPORTS, PIPELINES, STEPS, Workspace

HEAVY = ("torch", "feast", "great_expectations", "duckdb", "pyarrow", "tritonclient")
CACHED = {"tokenize", "pretrain", "reward", "align", "evaluate"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("pipelines")
    return {name: next(yaml.safe_load_all(compile_pipeline(name, out).read_text())) for name in PIPELINES}


def inner(spec: dict) -> dict[str, dict]:
    """The tasks inside the exit handler."""
    (handler,) = [name for name in spec["root"]["dag"]["tasks"] if name.startswith("exit-handler")]
    component = spec["root"]["dag"]["tasks"][handler]["componentRef"]["name"]
    return spec["components"][component]["dag"]["tasks"]


def tasks(spec: dict) -> dict[str, dict]:
    return {name: task for name, task in inner(spec).items() if not name.startswith("importer")}


def test_every_step_is_a_task_of_its_pipeline(compiled) -> None:
    assert {name: set(tasks(spec)) for name, spec in compiled.items()} == {n: set(s) for n, s in PIPELINES.items()}


def test_steps_depend_only_on_earlier_ones(compiled) -> None:
    for spec in compiled.values():
        for name, task in tasks(spec).items():
            before = [t for t in task.get("dependentTasks", []) if not t.startswith("importer")]
            assert all(STEPS.index(t) < STEPS.index(name) for t in before), name


def test_every_pipeline_tells_its_end_whatever_happens(compiled) -> None:
    for name, spec in compiled.items():
        (end,) = [t for n, t in spec["root"]["dag"]["tasks"].items() if not n.startswith("exit-handler")]
        assert end["componentRef"]["name"] == "comp-announce", name
        assert end["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
        assert end["inputs"]["parameters"]["pipeline"]["runtimeValue"]["constant"] == name
        assert not end["cachingOptions"].get("enableCache")


def test_every_image_is_named_by_the_digest_of_the_lock(compiled) -> None:
    wanted = check_image(json.loads(LOCK.read_text())["ml"])
    for name, spec in compiled.items():
        containers = [e["container"] for e in spec["deploymentSpec"]["executors"].values() if "container" in e]
        assert containers and {c["image"] for c in containers} == {wanted}, name
    for wrong in ("onerec/ml:1.0", "onerec/ml@sha256:abc", "onerec/ml", "onerec/ml:latest"):
        with pytest.raises(ValueError, match="names no digest"):
            check_image(wrong)


def test_only_commands_that_act_on_the_present_are_run_from_airflow(tmp_path) -> None:
    assert "0 removed" in run_command(["housekeeping", "--root", str(tmp_path), "--source", "s"])
    with pytest.raises(RuntimeError, match=r"release rollback .*ended with status 1: .*no earlier release"):
        run_command(["release", "rollback", "--root", str(tmp_path), "--source", "s"])
    for words in (["release", "promote", "x"], ["forget"], []):
        with pytest.raises(ValueError, match="is not run from Airflow"):
            run_command(words)


def test_only_pure_steps_are_cached(compiled) -> None:
    cached = {
        name for spec in compiled.values() for name, t in tasks(spec).items() if t["cachingOptions"].get("enableCache")
    }
    assert cached == CACHED


def test_every_input_artifact_comes_with_its_digest_and_every_step_returns_one(compiled) -> None:
    for spec in compiled.values():
        for name, task in tasks(spec).items():
            inputs = task["inputs"]
            for artifact in inputs.get("artifacts", {}):
                assert f"{artifact}_digest" in inputs["parameters"], (name, artifact)
            outputs = spec["components"][task["componentRef"]["name"]]["outputDefinitions"]
            assert outputs["parameters"]["Output"]["parameterType"] == "STRING"
            types = {a["artifactType"]["schemaTitle"] for a in outputs["artifacts"].values()}
            assert types <= {"system.Dataset", "system.Model", "system.Metrics", "system.HTML", "system.Artifact"}


def test_components_install_nothing(compiled) -> None:
    for spec in compiled.values():
        for executor in spec["deploymentSpec"]["executors"].values():
            assert "pip install" not in json.dumps(executor)


def test_the_committed_packages_are_what_the_code_compiles_to(tmp_path) -> None:
    assert drift() == [], "run python -m kfp_components.compile and commit what it writes"
    compile_all(tmp_path)
    (tmp_path / "features.yaml").write_text("other")
    (tmp_path / "gone.yaml").touch()
    assert drift(tmp_path) == ["features.yaml", "gone.yaml"]


def test_every_step_has_limits_a_timeout_and_what_its_gpus_need(tmp_path) -> None:
    assert set(RESOURCES) == {*STEPS, "announce", "command"}
    compile_all(tmp_path)
    for name, steps in PIPELINES.items():
        spec, platform = yaml.safe_load_all((tmp_path / f"{name}.yaml").read_text())
        for step in steps:
            task = inner(spec)[step]
            container = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
            placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
            limits, wanted = container["resources"], RESOURCES[step]
            assert limits["resourceCpuLimit"] and limits["resourceMemoryLimit"], step
            assert placed["activeDeadlineSeconds"] == str(wanted.timeout_s)
            assert task.get("retryPolicy", {}).get("maxRetryCount", 0) == wanted.retries, step
            assert {m["mountPath"] for m in placed["emptyDirMounts"]} == {"/tmp", *(["/dev/shm"] * wanted.gpus)}
            assert (
                ("accelerator" in limits)
                == ("nodeSelector" in placed)
                == ("tolerations" in placed)
                == bool(wanted.gpus)
            )
            assert placed["secretAsEnv"][0]["optional"] and placed["configMapAsEnv"][0]["optional"]
            assert placed["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
            assert [m["mountPath"] for m in placed["pvcMount"]] == [MOUNT]
            labels = placed.get("podMetadata", {}).get("labels", {})
            assert labels == ({WRITES_FEATURES: "true"} if step == "materialize" else {}), step


def test_on_one_machine_nothing_is_tried_again(tmp_path) -> None:
    package = compile_pipeline("training", tmp_path)
    assert "retryPolicy" in package.read_text() and "retryPolicy" not in without_retries(package)


def test_a_cluster_takes_the_image_by_digest() -> None:
    image = "registry/onerec-ml@sha256:" + "0" * 64
    code = "from kfp_components.image import IMAGE; print(IMAGE)"
    env = os.environ | {"ONEREC_IMAGE": image}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=env)
    assert done.stdout.strip() == image


@pytest.mark.parametrize("step", [*STEPS, "announce", "command"])
def test_component_bodies_are_one_call_and_import_nothing_heavy(step) -> None:
    tree = ast.parse((REPOSITORY / "kfp_components" / step / "component.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert function.name == step
    kinds = [type(node).__name__ for node in function.body]
    assert kinds == ["Expr", *["ImportFrom"] * (2 if step in STEPS else 1), "Return"]


@pytest.mark.parametrize("step", [*STEPS, "announce", "command"])
def test_every_component_is_typed_documented_and_has_a_test_of_its_own(step) -> None:
    """The test runs the step's own function; that its pipeline runs for real is tests/test_day_e2e.py's."""
    folder = REPOSITORY / "kfp_components" / step
    function = next(n for n in ast.parse((folder / "component.py").read_text()).body if isinstance(n, ast.FunctionDef))
    assert ast.get_docstring(function) and function.returns and all(a.annotation for a in function.args.args)
    assert ast.get_docstring(ast.parse((folder / "step.py").read_text()))
    tests = "".join(file.read_text() for file in (REPOSITORY / "tests").rglob("test_*.py"))
    named = rf"kfp_components\.{step}(\.\w+)? import (run\b|step\b)|kfp_components\.{step}\.step import"
    assert re.search(named, tests), f"no test imports the step {step}"


def test_compiling_imports_nothing_heavy() -> None:
    code = f"import sys, kfp_components.compile, kfp_components.run; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_imports_name_steps_of_earlier_pipelines(compiled) -> None:
    done: set[str] = set()
    for name, steps in PIPELINES.items():
        assert set(IMPORTS[name].values()) <= done
        parameters = compiled[name]["root"]["inputDefinitions"]["parameters"]
        assert {f"{n}_{part}" for n in IMPORTS[name] for part in ("uri", "digest")} <= set(parameters)
        done |= set(steps)


def test_a_pipeline_before_its_turn_names_the_step_to_run(tmp_path) -> None:
    run = Run(workspace=Workspace(root=str(tmp_path), source="logs"), day="2022-05-05", seed=0)
    with pytest.raises(ValueError, match="ingest holds no outcome; run the day from step ingest"):
        arguments(run, "tokenizer", "")
    with pytest.raises(ValueError, match="give --data"):
        arguments(run, "features", "")


def test_a_failing_component_is_told_in_one_line_with_its_trace_in_the_log_and_announced(tmp_path, capfd) -> None:
    """Real KFP, real component process, its exit handler and a webhook: the folder is in no known layout."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "nonsense.txt").write_text("x")
    root = tmp_path / "var"
    command = ["--pipeline", "features", "--day", "2022-05-05", "--root", str(root), "--source", "logs"]
    with webhook() as (url, heard):
        done = subprocess.run(
            [sys.executable, "-m", "kfp_components.run", *command, "--data", str(data)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"ONEREC_ALERT_URL": url},
        )
    assert done.returncode == 1
    progress = Workspace(root=str(root), source="logs").progress("2022-05-05")
    last = json.loads(progress.read_text().splitlines()[-1])
    assert (last["step"], last["event"], last["user"]) == ("ingest", "failed", True)
    assert "no known layout" in last["error"] and "Traceback" not in last["error"]
    assert "Traceback" in Path(last["log"]).read_text()
    end = json.loads(progress.with_name("pipelines.jsonl").read_text())
    assert (end["pipeline"], end["state"], end["step"]) == ("features", "FAILED", "ingest")
    assert end["error"] == last["error"]
    (alert,) = heard
    assert (alert["alert"], alert["pipeline"]) == ("pipeline_failed", "features")
    assert "no known layout" in alert["text"] and "next: read" in alert["text"]


@contextlib.contextmanager
def webhook():
    """An HTTP server that keeps what is POSTed to it."""
    heard: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
        server.shutdown()


def test_a_wrong_day_is_an_error_of_one_line(tmp_path, capsys) -> None:
    assert main(["--pipeline", "features", "--day", "5 May", "--root", str(tmp_path), "--data", "x"]) == 1
    assert capsys.readouterr().err == "error: '5 May' is not a day; write it as YYYY-MM-DD\n"
