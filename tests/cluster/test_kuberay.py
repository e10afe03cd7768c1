"""What is sent to Kubernetes is what was meant: no unknown key, no secret, nobody root, nothing open."""

from __future__ import annotations

import copy
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cryoray.serving.config import load
from tests.cluster.kubernetes import (
    Container,
    NetworkPolicy,
    PodSpec,
    RayClusterSpec,
    RayService,
    Strict,
    read,
)

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERAY = CLUSTER / "kuberay"
FILES = sorted(KUBERAY.glob("*.yaml"))
DOCUMENTS = [
    (f"{file.stem}-{at}", one)
    for file in FILES
    for at, one in enumerate(yaml.safe_load_all(file.read_text()))
]
OBJECTS = {name: read(document) for name, document in DOCUMENTS}


def walk(value: Any) -> list[Strict]:
    """An object and all that it holds."""
    if isinstance(value, Strict):
        inside = [one for name in type(value).model_fields for one in walk(getattr(value, name))]
        return [value, *inside]
    return [one for each in value for one in walk(each)] if isinstance(value, list) else []


ALL = [one for each in OBJECTS.values() for one in walk(each)]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("spec", "rayVersions"),
        ("spec.autoscalerOptions", "idleTimeoutSecond"),
        ("spec.workerGroupSpecs.0", "minReplica"),
        ("spec.headGroupSpec.template.spec", "securityContexts"),
        ("spec.headGroupSpec.template.spec.containers.0", "resource"),
    ],
)
def test_an_unknown_key_is_an_error(path: str, key: str) -> None:
    given = copy.deepcopy(dict(DOCUMENTS)["cluster-0"])
    at = given
    for step in path.split("."):
        at = at[int(step)] if step.isdigit() else at[step]
    at[key] = "x"
    with pytest.raises(ValidationError, match=key):
        read(given)


def test_all_that_is_applied_is_there_and_in_its_namespace() -> None:
    listed = set(yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())["resources"])
    assert listed == {file.name for file in FILES} - {"kustomization.yaml", "train.yaml"}
    for name, document in DOCUMENTS:
        if document["kind"] not in ("Namespace", "Kustomization"):
            assert document["metadata"]["namespace"] == "cryoray", name


def test_every_cluster_wants_a_token_and_outlives_its_head() -> None:
    clusters = [one for one in ALL if isinstance(one, RayClusterSpec)]
    assert len(clusters) == 3
    for cluster in clusters:
        assert cluster.auth_options.mode == "token"
        assert cluster.gcs_fault_tolerance_options.redis_address.endswith("cryoray-redis:6379")
        assert cluster.head_group_spec.ray_start_params["num-cpus"] == "0"
        assert cluster.ray_version == version("ray")
        assert {group.group_name for group in cluster.worker_group_specs} == {"cpu", "gpu"}


def test_nobody_is_root_and_only_the_head_talks_to_kubernetes() -> None:
    pods = [one for one in ALL if isinstance(one, PodSpec)]
    assert len(pods) == 3 * 3 + 2
    for pod in pods:
        assert pod.security_context.run_as_user > 0
        names = {container.name for container in pod.containers}
        assert pod.automount_service_account_token <= (names == {"ray-head"})
    for container in (one for one in ALL if isinstance(one, Container)):
        assert container.security_context.capabilities.drop == ["ALL"]
        assert container.resources.limits


def test_pods_are_restricted_and_write_no_root_of_their_own() -> None:
    namespace = dict(DOCUMENTS)["base-0"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in (one for one in ALL if isinstance(one, PodSpec)):
        assert pod.security_context.run_as_non_root
        assert pod.security_context.seccomp_profile.type == "RuntimeDefault"
        for container in pod.containers:
            assert container.security_context.read_only_root_filesystem, container.name
            writable = {mount.mount_path for mount in container.volume_mounts}
            assert {"/tmp", "/data"} & writable, container.name
            home = [one.value for one in container.env if one.name == "HOME"]
            assert home == ["/tmp"] or container.name == "redis"


def test_the_services_token_is_only_where_the_service_is() -> None:
    for name, document in DOCUMENTS:
        holds = "cryoray-token" in yaml.safe_dump(document)
        assert holds == (document["kind"] == "RayService"), name


def test_the_head_reaches_the_api_server_and_nothing_else_outside() -> None:
    for one in (one for one in ALL if isinstance(one, NetworkPolicy)):
        for rule in one.spec.egress:
            assert rule.to, f"{one.metadata.name} lets pods out to everywhere"
            for peer in rule.to:
                if peer.ip_block is not None:
                    assert one.spec.pod_selector.match_labels == {"ray.io/node-type": "head"}
                    assert peer.ip_block.cidr.endswith("/32")


def test_objects_are_in_memory_and_fit_into_the_pod() -> None:
    for pod in (one for one in ALL if isinstance(one, PodSpec)):
        mounts = {
            mount.mount_path: mount.name for one in pod.containers for mount in one.volume_mounts
        }
        if "/data" not in mounts or len(mounts) == 1:
            continue
        (shm,) = (one for one in pod.volumes if one.name == mounts["/dev/shm"])
        assert shm.empty_dir is not None
        assert shm.empty_dir.medium == "Memory"
        memory = pod.containers[0].resources.limits["memory"]
        assert int(shm.empty_dir.size_limit.removesuffix("Gi")) < int(memory.removesuffix("Gi")) / 2


def test_secrets_come_from_kubernetes_and_are_in_no_file() -> None:
    for file in CLUSTER.rglob("*"):
        if file.is_file() and file.suffix in (".yaml", ".yml", ".sh", ".md", ".json"):
            text = file.read_text()
            assert "kind: Secret" not in text, file
            assert not re.search(
                r"(password|token)\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{16,}['\"]?\s*$", text, re.M | re.I
            ), file


def test_the_network_is_closed_but_for_named_ports() -> None:
    policies = {one.metadata.name: one.spec for one in ALL if isinstance(one, NetworkPolicy)}
    denied = policies["deny-all"]
    assert set(denied.policy_types) == {"Ingress", "Egress"}
    assert (denied.ingress, denied.egress) == ([], [])
    assert denied.pod_selector.match_labels == {}
    for name, policy in policies.items():
        for rule in policy.ingress:
            assert rule.from_, f"{name} lets everybody in"
            outside = any(peer.namespace_selector for peer in rule.from_)
            ports = {port.port for port in rule.ports}
            assert not outside or ports <= {8000, 8080, 8265}, name
            assert 8265 not in ports or name == "operator", "the dashboard is no business of others"
            assert not outside or rule.ports, f"{name} opens every port"


def test_the_service_is_that_of_the_serve_folder(tmp_path: Path) -> None:
    (service,) = (one for one in ALL if isinstance(one, RayService))
    file = tmp_path / "serve.yaml"
    file.write_text(service.spec.serve_config_v2)
    load(file)  # strictly
    ours = yaml.safe_load(service.spec.serve_config_v2)
    theirs = yaml.safe_load((CLUSTER / "serve" / "facility.yaml").read_text())
    assert ours.pop("http_options") == {"host": "0.0.0.0", "port": 8000}
    assert ours.pop("proxy_location") == "EveryNode"
    assert theirs.pop("http_options")["host"] == "127.0.0.1"
    theirs.pop("proxy_location")
    assert ours == theirs


def test_no_image_is_whatever_is_newest_and_one_line_names_all_by_digest() -> None:
    texts = {file.name: file.read_text() for file in (*FILES, CLUSTER / "Containerfile")}
    named = [
        name
        for text in texts.values()
        for name in re.findall(r"^\s*(?:- )?image: (\S+)|^ARG BASE=(\S+)", text, re.M)
        for name in name
        if name
    ]
    assert len(named) > 5
    for name in named:
        tag = name.rpartition("/")[2].partition(":")[2]
        assert "@sha256:" in name or re.fullmatch(r"\d+(\.\d+)+(-[a-z]+)?", tag), name
    ours = {name for name in named if name.partition(":")[0] == "cryoray"}
    assert len(ours) == 1
    # What the README has people run changes every one of them.
    (line,) = re.findall(
        r'^sed -i "s\|image: (\S+)\|image: ', (CLUSTER / "README.md").read_text(), re.M
    )
    assert {line} == ours
