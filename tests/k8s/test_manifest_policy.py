"""House rules of `k8s/`: the restricted Pod Security Standard, least privilege, limits, probes, pinned images."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import pytest
import yaml

from kfp_components.pipelines.wiring import MOUNT
from tests.k8s.manifests import K8S, REPOSITORY, WORKLOADS, named, of_kind, pods, rendered

TALKS_TO_KUBERNETES = {"pipeline-runner", "airflow-scheduler"}  # the only accounts whose pods get a token
NAMESPACES = ("onerec", "onerec-serving", "airflow")


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return pod["containers"] + pod.get("initContainers", [])


def test_namespaces_enforce_the_restricted_profile(overlay: str) -> None:
    found = {n["metadata"]["name"]: n["metadata"]["labels"] for n in of_kind(overlay, "Namespace")}
    assert set(found) == set(NAMESPACES)
    assert {labels["pod-security.kubernetes.io/enforce"] for labels in found.values()} == {"restricted"}


def test_pods_meet_the_restricted_profile(overlay: str) -> None:
    assert pods(overlay)
    for name, pod in pods(overlay):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume} - {"name"}
        assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim", "projected"}, name
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert not own.get("privileged"), name


def test_scratch_space_is_bounded(overlay: str) -> None:
    for name, pod in pods(overlay):
        for volume in pod.get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], f"{name}: {volume['name']}"


def test_containers_have_limits_and_probes(overlay: str) -> None:
    for workload in of_kind(overlay, *WORKLOADS):
        for container in containers(workload["spec"]["template"]["spec"]):
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]) and "memory" in resources["limits"], named(workload)
            gpus = (resources[part].get("nvidia.com/gpu") for part in ("requests", "limits"))
            assert len(set(gpus)) == 1, f"{named(workload)}: a GPU is not shared, ask for as many as the limit"
        for container in workload["spec"]["template"]["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= set(container), f"{named(workload)} {container['name']}"


def test_triton_has_time_to_load_and_reads_releases_only(overlay: str) -> None:
    (triton,) = (d for d in of_kind(overlay, "Deployment") if d["metadata"]["name"] == "triton")
    pod = triton["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/models"]["readOnly"] is True
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts["/models"]["name"]]["persistentVolumeClaim"]["readOnly"] is True
    (volume,) = (v for v in of_kind(overlay, "PersistentVolume") if v["metadata"]["name"] == "onerec-releases")
    assert "read-only" in volume["spec"]["mountOptions"]
    if overlay == "prod":
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert any(t["topologyKey"] == "topology.kubernetes.io/zone" for t in pod["topologySpreadConstraints"])


def test_images_name_their_version(overlay: str) -> None:
    for name, pod in pods(overlay):
        for container in containers(pod):
            if (image := container.get("image")) is None:
                assert name.startswith("TrainingRuntime"), f"{name} {container['name']}: no image"
                continue
            by_digest = re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", image)
            by_tag = re.fullmatch(r"[^@]+:v?\d+\.\d+\.\d+[\w.-]*", image)
            assert by_digest or (overlay == "dev" and by_tag), f"{name}: {image}"


def test_values_of_airflow_name_their_image() -> None:
    for overlay in ("staging", "prod"):
        values = yaml.safe_load((K8S / f"overlays/{overlay}/airflow-values.yaml").read_text())
        assert re.fullmatch("sha256:[0-9a-f]{64}", values["images"]["airflow"]["digest"])


def test_traffic_is_denied_by_default_both_ways(overlay: str) -> None:
    denied = {
        policy["metadata"]["namespace"]
        for policy in of_kind(overlay, "NetworkPolicy")
        if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    }
    assert denied == set(NAMESPACES)


def test_no_policy_opens_everything(overlay: str) -> None:
    for policy in of_kind(overlay, "NetworkPolicy"):
        for way, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(way, []):
                assert rule.get(side), f"{named(policy)}: {way} for everybody"
                blocks = [peer["ipBlock"] for peer in rule[side] if "ipBlock" in peer]
                assert all(b["cidr"] != "0.0.0.0/0" or b.get("except") for b in blocks), named(policy)
                between_pods = all("podSelector" in peer and "namespaceSelector" not in peer for peer in rule[side])
                assert rule.get("ports") or between_pods, f"{named(policy)}: {way} on every port"


def test_network_policies_select_pods_that_exist(overlay: str) -> None:
    """A policy whose label is misspelt protects nothing and allows nothing."""
    labels = defaultdict(set)
    for workload in of_kind(overlay, *WORKLOADS):
        labels[workload["metadata"]["namespace"]] |= set(workload["spec"]["template"]["metadata"]["labels"].items())
    for policy in of_kind(overlay, "NetworkPolicy"):
        if policy["metadata"]["namespace"] == "onerec-serving":
            wanted = set(policy["spec"]["podSelector"].get("matchLabels", {}).items())
            assert wanted <= labels["onerec-serving"], named(policy)


def test_only_named_accounts_get_a_token(overlay: str) -> None:
    accounts = of_kind(overlay, "ServiceAccount")
    with_token = {a["metadata"]["name"] for a in accounts if a.get("automountServiceAccountToken") is not False}
    assert with_token == TALKS_TO_KUBERNETES
    here = {(a["metadata"]["namespace"], a["metadata"]["name"]) for a in accounts}
    for workload in of_kind(overlay, *WORKLOADS):
        pod = workload["spec"]["template"]["spec"]
        assert (workload["metadata"]["namespace"], pod["serviceAccountName"]) in here, named(workload)
        assert pod["automountServiceAccountToken"] is False, named(workload)


def test_roles_have_no_wildcard_and_touch_no_secret(overlay: str) -> None:
    assert of_kind(overlay, "Role") and not of_kind(overlay, "ClusterRole", "ClusterRoleBinding")
    for role in of_kind(overlay, "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], named(role)
            assert "secrets" not in rule["resources"] and "escalate" not in rule["verbs"], named(role)


def test_budgets_and_autoscalers_point_at_workloads(overlay: str) -> None:
    by_name = {w["metadata"]["name"]: w for w in of_kind(overlay, *WORKLOADS)}
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        labels = by_name[budget["metadata"]["name"]]["spec"]["template"]["metadata"]["labels"]
        assert set(budget["spec"]["selector"]["matchLabels"].items()) <= set(labels.items())
    assert {b["metadata"]["name"] for b in of_kind(overlay, "PodDisruptionBudget")} == set(by_name)
    for scaler in of_kind(overlay, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert named(by_name[target["name"]]).startswith(target["kind"])
        assert scaler["spec"]["minReplicas"] <= scaler["spec"]["maxReplicas"]


def test_triton_scales_on_a_metric_that_the_adapter_makes() -> None:
    (triton,) = (h for h in of_kind("prod", "HorizontalPodAutoscaler") if h["metadata"]["name"] == "triton")
    wanted = {m["pods"]["metric"]["name"] for m in triton["spec"]["metrics"]}
    adapter = yaml.safe_load((K8S / "base/monitoring/adapter-values.yaml").read_text())
    assert wanted == {rule["name"]["as"] for rule in adapter["rules"]["custom"]}


def test_secrets_come_from_the_store_and_exist(overlay: str) -> None:
    assert not of_kind(overlay, "Secret"), "a secret in the repository"
    made = {(s["metadata"]["namespace"], s["spec"]["target"]["name"]) for s in of_kind(overlay, "ExternalSecret")}
    for workload in of_kind(overlay, *WORKLOADS):
        text, namespace = json.dumps(workload), workload["metadata"]["namespace"]
        used = set(re.findall(r'"secretRef": {"name": "([^"]+)"', text))
        used |= set(re.findall(r'"secretName": "([^"]+)"', text))
        used |= set(re.findall(r'"secretKeyRef": {"key": "[^"]+", "name": "([^"]+)"', text))
        assert {(namespace, name) for name in used} <= made, named(workload)
    values = yaml.safe_load((K8S / "base/airflow/values.yaml").read_text())
    names = {values["data"]["metadataSecretName"]} | {v for k, v in values.items() if k.endswith("SecretName")}
    assert {("airflow", name) for name in names} <= made and len(names) >= 2


def test_config_maps_and_claims_exist(overlay: str) -> None:
    here = {named(thing) for thing in rendered(overlay)}
    for workload in of_kind(overlay, *WORKLOADS):
        text, namespace = json.dumps(workload), workload["metadata"]["namespace"]
        maps = re.findall(r'"config[mM]ap(?:Ref)?": {"name": "([^"]+)"', text)
        assert {f"ConfigMap {namespace}/{name}" for name in maps} <= here
        claims = re.findall(r'"claimName": "([^"]+)"', text)
        assert {f"PersistentVolumeClaim {namespace}/{name}" for name in claims} <= here


def test_what_the_compiled_pipelines_mount_and_read_exists_where_they_run(overlay: str) -> None:
    here = {named(thing): thing for thing in rendered(overlay)}
    secrets = {t["spec"]["target"]["name"] for n, t in here.items() if n.startswith("ExternalSecret onerec/")}
    for package in sorted((REPOSITORY / "kfp_components" / "compiled").glob("*.yaml")):
        _, platform = yaml.safe_load_all(package.read_text())
        for name, placed in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
            claims = [m["pvcNameParameter"]["runtimeValue"]["constant"] for m in placed["pvcMount"]]
            assert [c for c in claims if f"PersistentVolumeClaim onerec/{c}" not in here] == [], (package.stem, name)
            for source in placed["configMapAsEnv"]:
                found = here[f"ConfigMap onerec/{source['configMapNameParameter']['runtimeValue']['constant']}"]
                keys = {k["configMapKey"] for k in source["keyToEnv"]}
                assert keys - {"ONEREC_ALERT_URL"} <= set(found["data"]), (package.stem, name)
            wanted = {s["secretNameParameter"]["runtimeValue"]["constant"] for s in placed["secretAsEnv"]}
            assert wanted <= secrets, (package.stem, name)


def test_airflow_sees_the_workspace_where_its_tasks_look(overlay: str) -> None:
    values = yaml.safe_load((K8S / "base/airflow/values.yaml").read_text())
    environments = [
        values["env"],
        yaml.safe_load((K8S / f"overlays/{overlay}/airflow-values.yaml").read_text()).get("env"),
    ]
    for env in filter(None, environments):  # a list of the overlay replaces that of the base
        assert {"ONEREC_KFP_HOST", "ONEREC_STORE", "ONEREC_ROOT", "ONEREC_SERVERS"} <= {e["name"] for e in env}
        assert {e["value"] for e in env if e["name"] == "ONEREC_ROOT"} == {MOUNT}
    here = {named(thing) for thing in rendered(overlay)}
    for part in ("workers", "triggerer"):
        (volume,), (mount,) = values[part]["extraVolumes"], values[part]["extraVolumeMounts"]
        claim = volume["persistentVolumeClaim"]
        assert f"PersistentVolumeClaim airflow/{claim['claimName']}" in here and claim["readOnly"] and mount["readOnly"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], MOUNT)


def test_airflow_has_room_to_write_since_its_root_is_read_only() -> None:
    values = yaml.safe_load((K8S / "base/airflow/values.yaml").read_text())
    assert values["securityContexts"]["containers"]["readOnlyRootFilesystem"] is True
    (volume,), (mount,) = values["volumes"], values["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": "/tmp"} and volume["emptyDir"]["sizeLimit"]


def test_claims_find_the_volumes_that_are_kept_for_them(overlay: str) -> None:
    volumes = {v["metadata"]["name"]: v for v in of_kind(overlay, "PersistentVolume")}
    claims = [c for c in of_kind(overlay, "PersistentVolumeClaim") if "volumeName" in c["spec"]]
    assert len(claims) == len(volumes) == 3
    for claim in claims:
        volume = volumes[claim["spec"]["volumeName"]]
        wanted = {k: claim["metadata"][k] for k in ("namespace", "name")}
        assert volume["spec"]["claimRef"] == wanted
        assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"]


@pytest.mark.parametrize("overlay", ["staging", "prod"])
def test_an_environment_names_no_other(overlay: str) -> None:
    text = json.dumps(rendered(overlay)) + (K8S / f"overlays/{overlay}/airflow-values.yaml").read_text()
    others = {"dev", "staging", "prod"} - {overlay}
    assert [o for o in others if re.search(rf"onerec[-/]{o}\b", text)] == []


def test_accounts_of_airflow_exist() -> None:
    text = (K8S / "base/airflow/values.yaml").read_text()
    values = yaml.safe_load(text)
    wanted = {v["serviceAccount"]["name"] for v in values.values() if isinstance(v, dict) and "serviceAccount" in v}
    here = {a["metadata"]["name"] for a in of_kind("prod", "ServiceAccount") if a["metadata"]["namespace"] == "airflow"}
    assert wanted <= here and values["rbac"] == {"create": False}
    assert not re.search(r"(?i)password|://\w+:\w+@", text)


# The cloud: what the role of an account may do in the bucket.


def statements() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f.stem, s) for f in sorted((K8S / "policies").glob("*.json")) for s in json.loads(f.read_text())["Statement"]
    ]


def test_every_account_with_a_role_has_a_policy() -> None:
    annotated = {
        a["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].rpartition("role/onerec-prod-")[2]
        for a in of_kind("prod", "ServiceAccount")
        if "annotations" in a["metadata"]
    }
    assert annotated == {name for name, _ in statements()}


@pytest.mark.parametrize("name, statement", statements(), ids=lambda v: v if isinstance(v, str) else v["Sid"])
def test_cloud_roles_reach_only_their_prefixes(name: str, statement: dict[str, Any]) -> None:
    assert not any("*" in action for action in statement["Action"])
    for resource in statement["Resource"]:
        bucket_alone = statement["Action"] == ["s3:ListBucket"] and "Condition" in statement
        assert bucket_alone or re.search(r"[:/](lake|pipelines|store|airflow-logs|onerec/ENVIRONMENT)/", resource)


def test_only_pipelines_write_releases_and_nobody_deletes_them() -> None:
    for name, statement in statements():
        if any("store/" in resource for resource in statement["Resource"]):
            assert "s3:DeleteObject" not in statement["Action"]
            assert "s3:PutObject" not in statement["Action"] or name == "pipeline-runner"
