"""The few calls of the Kubeflow Pipelines API (v2beta1) that the operator needs, and the rule of one run.

    api = KfpApi("http://ml-pipeline:8888")
    run = api.submit_once(name="onerec-training-2022-05-05-1f0c", package=Path("training.yaml"), parameters={...})

KFP gives every submission a new run, so a request that was answered too late, or two schedulers, would make two. The
rule here: look for a run of that name first; after making one, look again; of several that live the oldest stays, and
whoever made a younger one ends it.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import yaml

LIVE = frozenset({"RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "CANCELING", "PAUSED"})
DONE = "SUCCEEDED"
PATIENCE_S, PAGE = 600.0, 100


class KfpUnavailable(Exception):
    """The API did not answer, or answered nonsense: worth another try."""


class KfpRefused(Exception):
    """The API understood and refused (4xx): trying again changes nothing."""


class KfpApi:
    """`host`: address of the API server. ONEREC_KFP_TOKEN_FILE: a file with a bearer token (a projected volume)."""

    def __init__(self, host: str, *, timeout_s: float = 30.0, namespace: str = "") -> None:
        self.host, self.timeout_s, self.namespace = host.rstrip("/"), timeout_s, namespace

    def get(self, run_id: str) -> dict[str, Any]:
        return self._call("GET", f"/runs/{urllib.parse.quote(run_id, safe='')}")

    def terminate(self, run_id: str) -> None:
        self._call("POST", f"/runs/{urllib.parse.quote(run_id, safe='')}:terminate", {})

    def named(self, name: str) -> list[dict[str, Any]]:
        """All runs of that very name, oldest first."""
        predicate = {"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]}
        query = {"filter": json.dumps(predicate), "page_size": str(PAGE)}
        query |= {"namespace": self.namespace} if self.namespace else {}
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = self._call("GET", "/runs?" + urllib.parse.urlencode(query | {"page_token": token}))
            found += [run for run in page.get("runs") or [] if run.get("display_name") == name]
            token = page.get("next_page_token") or ""
            if not token:
                return sorted(found, key=lambda run: (run.get("created_at", ""), run["run_id"]))

    def submit_once(
        self,
        *,
        name: str,
        package: Path,
        parameters: dict[str, Any],
        patience_s: float = PATIENCE_S,
        poll_s: float = 5.0,
    ) -> dict[str, Any]:
        """The run of that name that lives or has succeeded; else a new one. Survives an API that comes and goes."""
        deadline, wait = time.monotonic() + patience_s, poll_s
        while True:
            try:
                if kept := _kept(self.named(name)):
                    return kept
                return self._settle(name, self._create(name, package, parameters))
            except KfpUnavailable as error:
                # It may have been created all the same: the next turn looks before it makes another.
                if time.monotonic() >= deadline:
                    raise KfpUnavailable(f"no answer from {self.host} for {patience_s:.0f} s: {error}") from error
                time.sleep(wait)
                wait = min(2 * wait, 60.0)

    def _create(self, name: str, package: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(package.read_text()))
        spec = {"pipeline_spec": documents[0]} | ({"platform_spec": documents[1]} if len(documents) > 1 else {})
        body: dict[str, Any] = {
            "display_name": name,
            "pipeline_spec": spec,
            "runtime_config": {"parameters": parameters},
        }
        if account := os.environ.get("ONEREC_KFP_SERVICE_ACCOUNT"):
            body["service_account"] = account
        return self._call("POST", "/runs", body)

    def _settle(self, name: str, made: dict[str, Any]) -> dict[str, Any]:
        """Of several live runs of one name the oldest stays; ours, if younger, is ended."""
        kept = _kept(self.named(name)) or made
        if kept["run_id"] != made["run_id"]:
            self.terminate(made["run_id"])
        return kept

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if file := os.environ.get("ONEREC_KFP_TOKEN_FILE"):
            headers["Authorization"] = f"Bearer {Path(file).read_text().strip()}"  # read anew: such tokens rotate
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.host}/apis/v2beta1{path}", data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                found = json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            text = f"{method} {path.partition('?')[0]}: {error.code} {error.read(500).decode(errors='replace')}"
            if error.code in (401, 408, 429) or error.code >= 500:
                raise KfpUnavailable(text) from None
            raise KfpRefused(text) from None
        except (OSError, HTTPException, ValueError) as error:  # refused, reset, timed out, half an answer
            raise KfpUnavailable(f"{method} {path.partition('?')[0]}: {error}") from None
        if not isinstance(found, dict):
            raise KfpUnavailable(f"{method} {path.partition('?')[0]}: answered {type(found).__name__}, not an object")
        return found


def _kept(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The run that counts: the oldest that lives or has succeeded. Failed and cancelled ones make room for another."""
    return next((run for run in runs if run.get("state", "PENDING") in LIVE - {"CANCELING"} | {DONE}), None)
