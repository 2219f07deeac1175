"""Gather the numbers of a day from what its steps left: one JSON-able dict, the content of report.json.

    report = collect(Workspace(root="var", source="simulated"), "2022-05-05")

A section is the metrics of its step, unchanged, or None; `missing` then says why. Nothing is invented, and nothing is
mixed: a step that failed in the newest run, or whose inputs have been made anew since, counts as missing.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import Any

from kfp_components.lineage import open_store
from kfp_components.report.verdict import verdict
from kfp_components.step import Outcome
from kfp_components.workspace import PIPELINES, STEPS, TRAFFIC, Workspace
from releases.channels import CHANNELS, read_channel
from releases.describe import read_manifest
from releases.gates import read_decision

SCHEMA = 1
SECTIONS = {  # section of the report -> the step whose metrics it holds
    "data": "ingest",
    "quality": "validate",
    "pathways": "pathways",
    "materialize": "materialize",
    "tokenizer": "tokenize",
    "pretrain": "pretrain",
    "reward": "reward",
    "align": "align",
    "evaluation": "evaluate",
    "serving": "serve",
}
REPORTED = tuple(step for step in STEPS if step != "report")  # the report cannot time itself
MEMORY_LIMIT_MIB = 8192
TIME_LIMIT_S = {"first": 720, "later": 360}  # on 2 cores; a first day learns from every day before it


def collect(workspace: Workspace, day: str) -> dict[str, Any]:
    """Everything known about a day, also when it stopped half-way. Reads only; ValueError for an impossible day."""
    events = _last_events(workspace, day)
    outcomes, why = _outcomes(workspace, day, events)
    sections: dict[str, Any] = {n: dict(outcomes[s].metrics) if s in outcomes else None for n, s in SECTIONS.items()}
    if sections["serving"] is not None:
        sections["serving"]["users"] = _users(outcomes["serve"])
    if sections["quality"] is None:
        sections["quality"] = _stopping_results(workspace, day, events.get("validate", {}))
    _add_pathway_checks(sections)
    missing = {name: why[step] for name, step in SECTIONS.items() if sections[name] is None}
    release = None
    if "publish" in why:
        missing["release"] = why["publish"]
    else:
        try:
            release = _release(workspace, outcomes["publish"].metrics)
        except ValueError as error:
            missing["release"] = str(error)
    simulated = workspace.source == "simulated" or bool((sections["data"] or {}).get("simulated"))
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "day": day,
        "source": workspace.source,
        "simulated": simulated,
        "data_label": "simulated logs" if simulated else f"logs of {workspace.source}",
        "written_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "first_day": None if release is None else not release["parents"],
        **sections,
        "release": release,
        "steps": [
            _step(step, outcomes.get(step), events.get(step, {}), why)
            for step in REPORTED
            if step in outcomes or step not in TRAFFIC or events.get(step)  # nobody serves yet: nothing is missing
        ],
        "missing": missing,
    }
    report["totals"] = _totals(report["steps"], report["first_day"])
    report["verdict"] = verdict(report, why)
    return report


def _outcomes(workspace: Workspace, day: str, events: dict) -> tuple[dict[str, Outcome], dict[str, str]]:
    """The outcomes that belong together, and for every other step of the day why it has none."""
    found: dict[str, Outcome] = {}
    why: dict[str, str] = {}
    for step in REPORTED:
        last = events.get(step, {"event": None})
        if last["event"] == "failed":
            why[step] = f"the step {step} failed: {last.get('error', 'no message')} (log: logs/{step}.log)"
        elif last["event"] in ("started", "progress"):
            why[step] = f"the step {step} was cut off before it ended (log: logs/{step}.log)"
        elif not workspace.outcome(day, step).is_file() and step in TRAFFIC:
            continue
        elif not workspace.outcome(day, step).is_file():
            why[step] = f"the step {step} did not run"
        else:
            try:
                found[step] = Outcome.read(workspace.step_dir(day, step))
            except ValueError as error:
                why[step] = str(error)
    for step in REPORTED:  # in the order of the day, so that what follows a stale step is stale as well
        for name, digest in found[step].inputs.items() if step in found else ():
            of_day, _, source = name.partition("/")
            if of_day == day and source in REPORTED and (source not in found or found[source].digest != digest):
                why[step] = f"its result belongs to an earlier run of {source}; run the day again from {step}"
                del found[step]
                break
    return found, why


def _last_events(workspace: Workspace, day: str) -> dict[str, dict[str, Any]]:
    """The newest line of the progress file a step, with the time it `began`; half a line of a killed run is skipped."""
    path, last, begun = workspace.progress(day), {}, {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
            if event["event"] == "started":
                begun[event["step"]] = event["at"]
            last[event["step"]] = event | {"began": begun.get(event["step"])}
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return last


def _users(serve: Outcome) -> list[dict[str, Any]]:
    """The served users and their items, which the step keeps in a file, not among its metrics."""
    try:
        return json.loads((serve.path / "recommendations.json").read_text())["users"]
    except (OSError, KeyError, json.JSONDecodeError):
        return []


def _stopping_results(workspace: Workspace, day: str, last: dict[str, Any]) -> dict[str, Any] | None:
    """The results of the checks that stopped the day: a failed validate step leaves no outcome, only this file."""
    path = workspace.run_dir(day) / "quality" / "results.json"
    if last.get("event") != "failed" or not path.is_file() or path.stat().st_mtime < (last["began"] or math.inf):
        return None
    found = json.loads(path.read_text())
    return found if "critical_failed" in found else None


def _add_pathway_checks(sections: dict[str, Any]) -> None:
    """The pathway tables are checked where they are written; the page shows all checks of the day together."""
    checks = (sections["pathways"] or {}).pop("quality", None)
    if checks and sections["quality"]:
        sections["quality"] = {
            "critical_failed": sections["quality"]["critical_failed"] + checks["critical_failed"],
            "warning_failed": sections["quality"]["warning_failed"] + checks["warning_failed"],
            "results": [*sections["quality"]["results"], *checks["results"]],
        }


def _release(workspace: Workspace, published: dict[str, Any]) -> dict[str, Any]:
    """What the manifest, the gates and the channels say about the release that the publish step made."""
    if "release_id" not in published:
        raise ValueError(f"the publish step names no release_id (it left {sorted(published)}); run again from publish")
    store, release_id = open_store(workspace), published["release_id"]
    manifest = read_manifest(store, release_id)
    channels = {name: read_channel(store, name) for name in CHANNELS}
    production = channels["production"]
    return {
        "release_id": release_id,
        "created_at": manifest.created_at,
        "parents": manifest.parents,
        "seed": manifest.seed,
        "code_commit": manifest.code_commit,
        "environment": manifest.environment,
        "summaries": manifest.summaries,
        "data": manifest.data,
        "files": len(manifest.files),
        "bytes": sum(f.size for f in manifest.files),
        "gate": read_decision(store, release_id),
        "channels": {name: c.release_id if c else None for name, c in channels.items()},
        "was_in_production": bool(production and any(m["release_id"] == release_id for m in production.history)),
    }


def _step(step: str, outcome: Outcome | None, last: dict[str, Any], why: dict[str, str]) -> dict[str, Any]:
    pipeline = next(name for name, steps in PIPELINES.items() if step in steps)
    if outcome is None:
        return {"step": step, "pipeline": pipeline, "missing": why[step]}
    return {
        "step": step,
        "pipeline": pipeline,
        "seconds": outcome.seconds,
        "peak_mib": outcome.peak_mib,
        "reused": last.get("event") == "reused",
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
        "digest": outcome.digest,
    }


def _totals(steps: list[dict[str, Any]], first_day: bool | None) -> dict[str, Any]:
    """Seconds of all steps (reused ones count what they once took), wall clock when all ran now, highest memory."""
    ran = [s for s in steps if "missing" not in s]
    whole = len(ran) == len(steps) and not any(s["reused"] for s in ran)
    elapsed = None
    if whole:
        begun, ended = (
            f(dt.datetime.fromisoformat(s[k]) for s in ran) for f, k in ((min, "started_at"), (max, "ended_at"))
        )
        elapsed = (ended - begun).total_seconds()
    peak = max(ran, key=lambda s: s["peak_mib"], default=None)
    return {
        "seconds": round(sum(s["seconds"] for s in ran), 2),
        "seconds_reused": round(sum(s["seconds"] for s in ran if s["reused"]), 2),
        "seconds_elapsed": elapsed,
        "seconds_limit": None if first_day is None else TIME_LIMIT_S["first" if first_day else "later"],
        "peak_mib": peak["peak_mib"] if peak else None,
        "peak_step": peak["step"] if peak else None,
        "peak_limit_mib": MEMORY_LIMIT_MIB,
        "steps_missing": len(steps) - len(ran),
    }
