"""The operator on Kubeflow Pipelines, against a real HTTP server: one run a day and code, found again, ended."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowSkipException, TaskDeferred
from fake_kfp import FakeKfp, wait_until
from operators import kfp_run
from operators.command import OnerecCommand
from operators.kfp_api import KfpApi, KfpRefused, KfpUnavailable
from operators.kfp_run import HOST, PACKAGES, KfpRunTrigger, package, parameters
from operators.pipeline import RunPipelineOperator

DAY = "2022-05-05"


@pytest.fixture
def kfp(monkeypatch):
    with FakeKfp() as fake:
        monkeypatch.setenv(HOST, fake.url)
        yield fake


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace in which the steps before the tokenizer have left their outcomes."""
    for step in ("ingest", "pathways"):
        folder = tmp_path / "var" / "logs" / "days" / DAY / step
        folder.mkdir(parents=True)
        (folder / "_outcome.json").write_text(json.dumps({"digest": f"digest-{step}"}))
    return tmp_path / "var"


def operator(root: Path, **more) -> RunPipelineOperator:
    fields = {
        "pipeline": "tokenizer",
        "day": DAY,
        "root": str(root),
        "source": "logs",
        "refit": "False",
        "poll_s": 0.02,
    }
    return RunPipelineOperator(task_id="t", **(fields | more))


def deferred(task: RunPipelineOperator | OnerecCommand) -> KfpRunTrigger:
    with pytest.raises(TaskDeferred) as caught:
        task.execute({"run_id": "scheduled__2022-05-05"})
    assert caught.value.method_name == "finished"
    kind, values = caught.value.trigger.serialize()
    assert kind == "operators.kfp_run.KfpRunTrigger"
    return KfpRunTrigger(**values)  # what another triggerer would make of it


def event(trigger: KfpRunTrigger) -> dict:
    async def first() -> dict:
        async for found in trigger.run():
            return found.payload
        raise AssertionError("the trigger ended without an event")

    return asyncio.run(asyncio.wait_for(first(), timeout=20))


def test_it_submits_the_committed_package_with_digests_defers_and_ends_well(kfp, root) -> None:
    task = operator(root)
    trigger = deferred(task)
    body = kfp.bodies[trigger.run_id]
    sent = body["runtime_config"]["parameters"]
    assert sent["tables_digest"] == "digest-ingest" and sent["features_uri"].endswith(f"days/{DAY}/pathways")
    assert sent["refit"] is False and "data" not in sent
    assert body["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "onerec-tokenizer"
    kfp.finish(trigger.run_id)
    task.finished({}, event(trigger))


def test_two_triggers_of_a_day_and_a_restarted_worker_find_the_same_run(kfp, root) -> None:
    first, second = deferred(operator(root)), deferred(operator(root))
    assert first.run_id == second.run_id and len(kfp.runs) == 1
    kfp.finish(first.run_id)
    operator(root).execute({"run_id": "manual"})  # already succeeded: nothing to submit, nothing to wait for
    assert len(kfp.runs) == 1


def test_other_inputs_or_other_code_are_another_run(kfp, root, tmp_path, monkeypatch) -> None:
    deferred(operator(root))
    (root / "logs" / "days" / DAY / "ingest" / "_outcome.json").write_text('{"digest": "mended"}')
    deferred(operator(root))
    packages = tmp_path / "packages"
    packages.mkdir()
    for file in package("tokenizer").parent.iterdir():
        (packages / file.name).write_text(file.read_text() + "\n")
    monkeypatch.setenv(PACKAGES, str(packages))
    deferred(operator(root))
    assert len({run["display_name"] for run in kfp.runs.values()}) == 3


def test_running_a_step_afresh_is_not_answered_by_an_old_success(kfp, root) -> None:
    first = deferred(operator(root, fresh_from="tokenize"))
    kfp.finish(first.run_id)
    with pytest.raises(TaskDeferred):
        operator(root, fresh_from="tokenize").execute({"run_id": "manual__later"})
    assert len(kfp.runs) == 2


def test_a_rollout_is_told_whom_to_watch_and_is_skipped_where_nobody_serves(kfp, root) -> None:
    for step in ("publish", "gate"):
        folder = root / "logs" / "days" / DAY / step
        folder.mkdir(parents=True)
        (folder / "_outcome.json").write_text(json.dumps({"digest": f"digest-{step}"}))
    traffic = {"servers": "http://triton:8002/metrics", "percents": "1,10", "answers": "500", "hours": "2.0"}
    fields = {"pipeline": "canary", "skip_without_servers": True}
    trigger = deferred(operator(root, **fields, **traffic))
    sent = kfp.bodies[trigger.run_id]["runtime_config"]["parameters"]
    assert {k: sent[k] for k in traffic} == traffic | {"answers": 500, "hours": 2.0}
    assert sent["decision_digest"] == "digest-gate" and "quality_digest" not in sent
    with pytest.raises(AirflowSkipException, match="no servers"):
        operator(root, **fields, **traffic | {"servers": ""}).execute({"run_id": "r"})
    promoted = deferred(operator(root, pipeline="promote"))
    assert kfp.bodies[promoted.run_id]["runtime_config"]["parameters"]["servers"] == ""


def test_a_command_is_one_run_of_its_airflow_run(kfp) -> None:
    """Airflow's image holds no `onerec`; clearing the task must not roll back twice."""
    words = ["release", "rollback", "--root", "/var/onerec", ""]
    task = OnerecCommand(task_id="rollback", arguments=words, poll_s=0.02)
    trigger = deferred(task)
    assert kfp.bodies[trigger.run_id]["runtime_config"]["parameters"] == {"arguments": words[:-1]}
    kfp.finish(trigger.run_id)
    task.finished({}, event(trigger))
    task.execute({"run_id": "scheduled__2022-05-05"})
    assert len(kfp.runs) == 1
    with pytest.raises(TaskDeferred):
        task.execute({"run_id": "manual__again"})
    assert len(kfp.runs) == 2
    failed = {"run_id": "r", "state": "FAILED", "error": "no earlier release", "tasks": []}
    with pytest.raises(AirflowException, match="no earlier release; next, by hand: onerec release rollback --root"):
        task.finished({}, failed)
    task.on_kill()
    assert kfp.live() == []


def test_mended_logs_are_another_digest(tmp_path) -> None:
    (tmp_path / "log.csv").write_text("1")
    before = kfp_run.data_digest(str(tmp_path))
    assert before == kfp_run.data_digest(str(tmp_path)) != ""
    (tmp_path / "log.csv").write_text("12")
    assert kfp_run.data_digest(str(tmp_path)) != before
    assert kfp_run.data_digest("s3://bucket/logs") == kfp_run.data_digest("") == ""


def test_a_failed_run_fails_the_task_with_the_next_command_and_another_try_is_another_run(kfp, root) -> None:
    task = operator(root)
    trigger = deferred(task)
    kfp.finish(trigger.run_id, "FAILED", failed="tokenize")
    with pytest.raises(
        AirflowException, match=r"ended as FAILED, failed: tokenize.*next.*onerec daily --date 2022-05-05"
    ):
        task.finished({}, event(trigger))
    assert deferred(operator(root)).run_id != trigger.run_id


def test_the_trigger_lives_through_a_flapping_api_and_a_restart_of_it(kfp, root) -> None:
    trigger = deferred(operator(root))
    kfp.faults += ["503", "drop", "half", "garbage", "503"]
    found: list[dict] = []
    thread = threading.Thread(target=lambda: found.append(event(trigger)))
    thread.start()
    wait_until(lambda: not kfp.faults)
    kfp.stop()
    kfp.finish(trigger.run_id)
    kfp.restart()
    thread.join(timeout=20)
    assert found == [{"run_id": trigger.run_id, "state": "SUCCEEDED", "error": "", "tasks": []}]


def test_only_a_long_silence_or_a_lost_run_ends_the_waiting(kfp, root) -> None:
    trigger = deferred(operator(root))
    kfp.runs.clear()
    assert event(trigger)["state"] == "LOST"
    kfp.stop()
    silent = event(KfpRunTrigger(kfp.url, "run-000", poll_s=0.02, flapping_s=0.1))
    assert silent["state"] == "SILENT" and "no answer" in silent["error"]
    kfp.restart()


def test_clearing_the_task_cancels_its_run_but_a_restart_of_the_triggerer_does_not(kfp, root) -> None:
    trigger = deferred(operator(root))
    asyncio.run(trigger.cleanup())  # what a triggerer calls when it goes down
    assert kfp.live() == [trigger.run_id]
    asyncio.run(trigger.on_kill())  # what it calls when a person clears or fails the task
    assert kfp.runs[trigger.run_id]["state"] == "CANCELED"
    assert deferred(operator(root)).run_id != trigger.run_id


def test_killed_between_submission_and_waiting_the_worker_cancels_the_run(kfp, root) -> None:
    task = operator(root)
    trigger = deferred(task)
    task.on_kill()
    assert kfp.runs[trigger.run_id]["state"] == "CANCELED"


def test_an_answer_that_was_lost_makes_no_second_run(kfp, root) -> None:
    kfp.faults += ["ok", "created-then-drop"]
    api = KfpApi(kfp.url)
    run = api.submit_once(name="n", package=package("tokenizer"), parameters={}, poll_s=0.01)
    assert len(kfp.runs) == 1 and run["run_id"] == "run-000"


def test_two_schedulers_at_once_leave_one_live_run(kfp) -> None:
    kfp.barrier = threading.Barrier(2)  # both have looked and found nothing before either creates
    kept: list[str] = []

    def submit() -> None:
        found = KfpApi(kfp.url).submit_once(name="n", package=package("tokenizer"), parameters={})
        kept.append(found["run_id"])

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(kfp.runs) == 2 and kfp.live() == ["run-000"] and set(kept) == {"run-000"}


def test_refusals_are_told_at_once_and_silence_after_its_time(kfp, root) -> None:
    with pytest.raises(KfpRefused, match="404"):
        KfpApi(kfp.url).get("none")
    kfp.faults += ["503"] * 50
    with pytest.raises(KfpUnavailable, match=r"no answer from .* for 0 s: GET /runs: 503"):
        KfpApi(kfp.url).submit_once(name="n", package=package("tokenizer"), parameters={}, patience_s=0.2, poll_s=0.01)


def test_a_step_that_has_not_run_is_named(kfp, root) -> None:
    with pytest.raises(ValueError, match="step validate of 2022-05-05 has to run first"):
        parameters("training", day=DAY, root=str(root), source="logs")
    with pytest.raises(AirflowException, match=r"was not submitted.*has to run first"):
        operator(root, pipeline="training").execute({"run_id": "r"})


def test_the_token_is_read_anew_for_every_call(kfp, tmp_path, monkeypatch) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    monkeypatch.setenv("ONEREC_KFP_TOKEN_FILE", str(file))
    KfpApi(kfp.url).named("n")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        KfpApi(kfp.url).named("n")
