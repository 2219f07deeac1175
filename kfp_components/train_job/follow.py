"""Create a TrainJob, or find the one that an earlier try of the same step created, and follow it to its end.

    follow(job, progress=print)

The log of the first node's pod is passed on line by line. A job that fails or disappears is a RuntimeError with the
condition's message; an interrupted follower leaves the job running, and the next one goes on following it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kfp_components.train_job.manifest import GROUP, NODE, PLURAL, VERSION, TrainJob

POLL_S = 10.0
TROUBLES = 30  # answers in a row that are no answer, before the follower gives up
LABEL_JOB, LABEL_PART = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name"
LABEL_INDEX = "batch.kubernetes.io/job-completion-index"


def load_client() -> Any:
    """An API client from the pod's service account, else from the user's kubeconfig."""
    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise ValueError(
                f"no cluster to train on ({error}): run inside a pod, set KUBECONFIG, or train here: "
                "ONEREC_TRAINER=torchrun"
            ) from None
    return client.ApiClient()


def follow(
    job: TrainJob, progress: Callable[[str], None], api: Any = None, poll_s: float = POLL_S, delete: bool = True
) -> None:
    """Returns when the job is complete, and then removes it unless told otherwise."""
    from kubernetes import client

    api = api or load_client()
    objects = client.CustomObjectsApi(api)
    submit(objects, job, progress)
    log, troubles, said = PodLog(client.CoreV1Api(api), job, progress), 0, ""
    while True:
        try:
            status = objects.get_namespaced_custom_object(GROUP, VERSION, job.namespace, PLURAL, job.name).get(
                "status", {}
            )
            troubles = 0
        except client.ApiException as error:
            if error.status == 404:
                raise RuntimeError(f"TrainJob {job.namespace}/{job.name} was deleted while it ran") from None
            status, troubles = {}, troubles + 1
            if troubles == TROUBLES:
                raise
        log.forward()
        state = {c["type"]: c for c in status.get("conditions", []) if c.get("status") == "True"}
        if "Failed" in state:
            why = " ".join(filter(None, (state["Failed"].get(key) for key in ("reason", "message"))))
            raise RuntimeError(
                f"TrainJob {job.namespace}/{job.name} failed: {why}"
                f"; see: kubectl -n {job.namespace} logs -l {LABEL_JOB}={job.name} --all-containers"
            )
        if "Complete" in state:
            log.forward()
            progress(f"TrainJob {job.name} is complete")
            if delete:
                objects.delete_namespaced_custom_object(GROUP, VERSION, job.namespace, PLURAL, job.name)
            return
        line = _line(job, status, state)
        if line != said:
            progress(line)
            said = line
        time.sleep(poll_s)


def submit(objects: Any, job: TrainJob, progress: Callable[[str], None]) -> None:
    """Create it. One of the same name is the same work (the name holds the run's digest): it is followed instead."""
    from kubernetes import client

    try:
        objects.create_namespaced_custom_object(GROUP, VERSION, job.namespace, PLURAL, job.manifest())
        progress(f"TrainJob {job.name}: {job.nodes} nodes x {job.processes_per_node} processes")
    except client.ApiException as error:
        if error.status == 409:
            progress(f"TrainJob {job.name} runs already: followed")
            return
        if error.status == 404:
            raise ValueError(
                f"the cluster knows no TrainJob ({error.reason}): install Kubeflow Trainer 2.x, or train here: "
                "ONEREC_TRAINER=torchrun"
            ) from None
        if error.status in (401, 403):
            raise ValueError(
                f"not allowed to create TrainJobs in namespace {job.namespace}: the pipeline's service account needs "
                f"create, get and delete on {PLURAL}.{GROUP}, and get and list on pods and pods/log"
            ) from None
        raise


class PodLog:
    """What the first node's pod has printed since the last look."""

    def __init__(self, core: Any, job: TrainJob, progress: Callable[[str], None]) -> None:
        self.core, self.job, self.progress, self.pod, self.lines = core, job, progress, "", 0

    def forward(self) -> None:
        """Pass on new lines. A pod that is not there yet, or no longer, is no error."""
        from kubernetes import client

        selector = f"{LABEL_JOB}={self.job.name},{LABEL_PART}={NODE},{LABEL_INDEX}=0"
        try:
            pods = self.core.list_namespaced_pod(self.job.namespace, label_selector=selector).items
            if not pods:
                return
            newest = max(pods, key=lambda p: p.metadata.creation_timestamp).metadata.name
            if newest != self.pod:  # started again: its log begins anew
                self.pod, self.lines = newest, 0
            text = self.core.read_namespaced_pod_log(newest, self.job.namespace, container=NODE)
        except client.ApiException:
            return
        lines = text.splitlines()
        for line in lines[self.lines :]:
            self.progress(line)
        self.lines = len(lines)


def _line(job: TrainJob, status: dict[str, Any], state: dict[str, Any]) -> str:
    if "Suspended" in state:
        return f"TrainJob {job.name} waits in queue {job.queue or '(suspended)'}"
    jobs = {j.get("name"): j for j in status.get("jobsStatus", [])}
    node = jobs.get(NODE, {})
    counts = ", ".join(f"{node[k]} {k}" for k in ("active", "ready", "succeeded", "failed") if node.get(k))
    return f"TrainJob {job.name}: {counts or 'pods are being created'}"
