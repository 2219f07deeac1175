"""Every rendered object against a real schema: none of its fields is unknown, of the wrong type, or missing."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob

from kfp_components.train_job.manifest import TrainJob, training_runtime
from tests.k8s.manifests import K8S, named, of_kind, rendered

VERSION = "1.32"
CUSTOM = {
    kind: schema
    for file in sorted((K8S / "schemas").glob("*.json"))
    for kind, schema in json.loads(file.read_text()).items()
}


def strict(model: Any, thing: dict[str, Any]) -> None:
    """The published model takes the object and gives it back whole: what it does not know would be missing."""
    assert model.from_dict(copy.deepcopy(thing)).to_dict() == thing


def check(thing: dict[str, Any]) -> None:
    if thing["kind"] == "TrainingRuntime":
        strict(TrainerV1alpha1TrainingRuntime, thing)
    elif thing["kind"] in CUSTOM:
        jsonschema.validate(thing, CUSTOM[thing["kind"]])
    else:
        kubernetes_validate.validate(thing, VERSION, strict=True)


def test_every_object_fits_its_schema(overlay: str) -> None:
    assert len(rendered(overlay)) > 60
    for thing in rendered(overlay):
        try:
            check(thing)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            pytest.fail(f"{named(thing)}: {error.message}")


def test_names_are_unique(overlay: str) -> None:
    names = [named(thing) for thing in rendered(overlay)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "kind, path, value",
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "resuorces"), {}),
        ("Deployment", ("spec", "replicas"), "two"),
        ("NetworkPolicy", ("spec", "egrss"), []),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "for_"), "5m"),
        ("ExternalSecret", ("spec", "target", "templte"), {}),
        ("ClusterQueue", ("spec", "resourceGroups", 0, "flavors", 0, "quota"), 3),
        ("TrainingRuntime", ("spec", "template", "spec", "replicatedjobs"), []),
    ],
)
def test_the_check_sees_a_wrong_field(kind: str, path: tuple, value: Any) -> None:
    thing = copy.deepcopy(of_kind("dev", kind)[0])
    at: Any = thing
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError, AssertionError)):
        check(thing)


def test_cluster_queues_name_every_covered_resource(overlay: str) -> None:
    """The rule that Kueue's API states in CEL: a flavor lists the covered resources, all of them and in their order."""
    for queue in of_kind(overlay, "ClusterQueue"):
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                assert [r["name"] for r in flavor["resources"]] == group["coveredResources"]


def test_runtime_is_what_the_pretrain_step_expects() -> None:
    written = yaml.safe_load((K8S / "base/training/runtime.yaml").read_text())
    assert written == training_runtime(claim="onerec-workspace", mount="/var/onerec")


def test_trainjob_fits_the_published_api_and_finds_runtime_and_queue() -> None:
    job = TrainJob(
        name="onerec-x",
        arguments=["--seed", "1"],
        nodes=2,
        gpus=8,
        image="r/onerec@sha256:ab",
        queue="onerec",
        environment={"A": "b"},
    ).manifest()
    strict(TrainerV1alpha1TrainJob, job)
    here = {named(thing) for thing in rendered("prod")}
    namespace = job["metadata"]["namespace"]
    assert f"TrainingRuntime {namespace}/{job['spec']['runtimeRef']['name']}" in here
    assert f"LocalQueue {namespace}/{job['metadata']['labels']['kueue.x-k8s.io/queue-name']}" in here
