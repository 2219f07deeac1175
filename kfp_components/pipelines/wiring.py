"""How a pipeline is put together: artifacts with their digests, what a task needs of a cluster, and the exit handler.

with reported("training", day=day, root=root, source=source):
    tables = imported("tables", tables_uri, tables_digest)
    built = made("features", uncached(placed(pathways(**run, **tables), RESOURCES["pathways"])))
"""

from __future__ import annotations

from kfp import dsl, kubernetes

from kfp_components.announce.component import announce
from kfp_components.resources import RESOURCES, Resources

GPU = "nvidia.com/gpu"
# Of the namespace that the runs are in (k8s/base/training). Optional, so that a package also runs where they are not.
SECRET = "feature-store"
SECRET_KEYS = {name: name for name in ("ONEREC_FEATURE_REGISTRY", "ONEREC_FEATURE_REDIS")}
SETTINGS = "onerec-pipelines"
SETTINGS_KEYS = {name: name for name in ("ONEREC_STORE", "ONEREC_ALERT_URL")}
CLAIM, MOUNT = "onerec-workspace", "/var/onerec"  # where lake, features and outcomes lie; TrainJobs mount the same
WRITES_FEATURES = "onerec.io/writes-features"  # pods that the network lets reach the online store
USER = 1000


def reported(pipeline: str, *, day, root, source) -> dsl.ExitHandler:
    """The tasks of a pipeline go inside: however they end, `announce` tells it."""
    task = uncached(announce(pipeline=pipeline, day=day, root=root, source=source))
    return dsl.ExitHandler(placed(task, RESOURCES["announce"]), name=pipeline)


def made(name: str, task: dsl.PipelineTask) -> dict:
    """Of an artifact that a task of this pipeline makes."""
    return {name: task.outputs[name], f"{name}_digest": task.outputs["Output"]}


def imported(name: str, uri, digest, artifact: type[dsl.Artifact] = dsl.Dataset) -> dict:
    """Of an artifact that an earlier pipeline made."""
    task = dsl.importer(artifact_uri=uri, artifact_class=artifact, reimport=True)
    return {name: task.output, f"{name}_digest": digest}


def placed(task: dsl.PipelineTask, resources: Resources) -> dsl.PipelineTask:
    """With what a step needs of a cluster: CPU, memory, GPUs, where it runs, how long, how often it is tried."""
    task.set_cpu_limit(resources.cpu).set_memory_limit(resources.memory)
    if resources.retries:
        task.set_retry(
            num_retries=resources.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration="1800s"
        )
    kubernetes.set_timeout(task, resources.timeout_s)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.use_secret_as_env(task, secret_name=SECRET, secret_key_to_env=SECRET_KEYS, optional=True)
    kubernetes.use_config_map_as_env(task, SETTINGS, SETTINGS_KEYS, optional=True)
    kubernetes.mount_pvc(task, pvc_name=CLAIM, mount_path=MOUNT)
    kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path="/tmp")  # the root file system is read-only
    if resources.writes_features:
        kubernetes.add_pod_label(task, WRITES_FEATURES, "true")
    if resources.gpus:
        task.set_accelerator_type(GPU).set_accelerator_limit(resources.gpus)
        kubernetes.add_node_selector(task, label_key="nvidia.com/gpu.product", label_value=resources.gpu_type)
        kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
        # Loaders and NCCL share memory between processes; a container has 64 MiB of it unless it asks.
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=resources.shared_memory
        )
    return task


def uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """For a task that writes elsewhere than into its artifacts: KFP must run it every time."""
    return task.set_caching_options(False)
