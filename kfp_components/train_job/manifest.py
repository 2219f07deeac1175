"""The Kubernetes objects of a distributed pre-training, as typed Python: a TrainJob and the runtime it refers to.

    TrainJob(name="onerec-pretrain-2022-05-05-1a2b3c4d", arguments=[...], nodes=4, gpus=8, image=...).manifest()
    python -m kfp_components.train_job.manifest --claim workspace --mount /var/onerec | kubectl apply -f -

API: trainer.kubeflow.org/v1alpha1 (Kubeflow Trainer 2.x). The trainer's torch plugin gives every pod the rendezvous as
PET_* variables, which torchrun reads; the number of processes a node is said to torchrun itself, because the API field
for it has moved between minor versions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "onerec-torch"
MODULE = "models.training.pretrain"
NODE = "node"  # the replicated job and container that the trainer takes for the workers
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """`arguments` go to models.training.pretrain. `queue`: a Kueue queue, which starts the job. `gpus` 0: on CPU."""

    name: str
    arguments: Sequence[str]
    nodes: int
    gpus: int
    image: str
    namespace: str = "onerec"
    runtime: str = RUNTIME
    cpus: str = "16"
    memory: str = "128Gi"
    queue: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no Kubernetes name; use small letters, digits and '-', at most 63")
        if self.nodes < 1 or self.gpus < 0:
            raise ValueError(f"nodes is {self.nodes} and gpus is {self.gpus}; at least one node, and no negative gpus")
        if "@sha256:" not in self.image and ":" not in self.image.rpartition("/")[2]:
            raise ValueError(f"image {self.image!r} names no version; give a tag or, better, a digest")

    @property
    def processes_per_node(self) -> int:
        return max(1, self.gpus)

    def manifest(self) -> dict[str, Any]:
        """The TrainJob as Kubernetes' API takes it."""
        resources = {"cpu": self.cpus, "memory": self.memory} | (
            {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        )
        labels = {"app.kubernetes.io/name": "onerec", "app.kubernetes.io/component": "pretrain"}
        command = ["torchrun", "--nproc-per-node", str(self.processes_per_node), "-m", MODULE]
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainJob",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": labels | ({"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}),
            },
            "spec": {
                "suspend": bool(self.queue),
                "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": self.runtime},
                "trainer": {
                    "image": self.image,
                    "numNodes": self.nodes,
                    "command": command,
                    "args": list(self.arguments),
                    "env": [{"name": k, "value": v} for k, v in sorted(self.environment.items())],
                    "resourcesPerNode": {"requests": resources, "limits": resources},
                },
            },
        }


def training_runtime(*, claim: str, mount: str, namespace: str = "onerec", name: str = RUNTIME) -> dict[str, Any]:
    """The runtime of all TrainJobs: pods without privileges that see the workspace volume where the pipeline sees it.

    k8s/base/training/runtime.yaml is what this gives (a test compares). The ancestor label tells the trainer which job
    is the workers'.
    """
    container = {
        "name": NODE,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "workspace", "mountPath": mount},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "serviceAccountName": "trainer",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "16Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},  # NCCL's shared memory
        ],
    }
    job = {
        "name": NODE,
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": pod}},
        },
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainingRuntime",
        "metadata": {"name": name, "namespace": namespace, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": [job]}}},
    }


def main() -> None:
    """Print the runtime for `kubectl apply -f -`."""
    p = argparse.ArgumentParser(description="The TrainingRuntime that pre-training's TrainJobs refer to.")
    p.add_argument("--claim", required=True, help="PersistentVolumeClaim (ReadWriteMany) of the workspace")
    p.add_argument("--mount", required=True, help="where the pipeline's pods see it")
    p.add_argument("--namespace", default="onerec")
    print(json.dumps(training_runtime(**vars(p.parse_args())), indent=1))


if __name__ == "__main__":
    main()
