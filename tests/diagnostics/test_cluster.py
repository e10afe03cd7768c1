"""The doctor's look at a cluster: each thing that is wrong is told with its remedy."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cryoray.diagnostics import cluster
from cryoray.diagnostics.finding import Finding
from cryoray.settings import RuntimeSettings, load

HERE = cluster.look({})["versions"]
GOOD: dict[str, Any] = {
    "versions": HERE,
    "shm": 4 << 30,
    "gpus": 0,
    "unseen": [],
    "loopback": False,
}
RESOURCES = {"CPU": 8.0, "object_store_memory": 2.0 * 2**30}


def found(**other: Any) -> list[Finding]:
    return [*cluster.judged("n", {**GOOD, **other}, HERE, RESOURCES)]


@pytest.mark.parametrize(
    ("other", "state", "says"),
    [
        ({}, "good", "same versions, same storage"),
        ({"versions": {**HERE, "torch": "1.0"}}, "bad", "torch 1.0"),
        ({"unseen": ["/data/.probe"]}, "bad", "does not see /data"),
        ({"shm": 1 << 20}, "warning", "/dev/shm has 0.0 GiB for 2.0 GiB"),
        ({"gpus": 4}, "warning", "4 GPUs, of which Ray uses 0"),
        ({"loopback": True}, "warning", "its own name means 127"),
    ],
)
def test_what_is_wrong_with_a_node_is_told(other: dict[str, Any], state: str, says: str) -> None:
    first = found(**other)[0]
    assert first.state == state
    assert says in first.found
    assert bool(first.remedy) == (state != "good")


def test_a_file_that_is_not_there_or_another_is_unseen(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    probes = {str(tmp_path / "a"): "one", str(tmp_path / "b"): "two"}
    assert cluster.look(probes)["unseen"] == [str(tmp_path / "b")]
    (tmp_path / "a").write_text("another machine's")
    assert str(tmp_path / "a") in cluster.look(probes)["unseen"]


def test_a_name_that_means_the_node_itself_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert cluster.look({})["loopback"]
    monkeypatch.setattr(socket, "gethostname", lambda: "192.0.2.7")
    assert not cluster.look({})["loopback"]
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert not cluster.look({})["loopback"]


def test_an_open_ray_and_a_prefect_that_is_away_are_bad() -> None:
    assert cluster._ray_token({"RAY_AUTH_MODE": "disabled"}).state == "bad"
    assert cluster._ray_token({}).state == "good"
    assert cluster.prefect_server("http://127.0.0.1:9/api").state == "bad"
    assert cluster.prefect_server(None).state == "good"


@pytest.mark.ray
def test_every_node_of_a_real_ray_is_looked_at(
    tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    settings = load(
        runtime=ray_cluster.model_dump(),
        registry=tmp_path / "registry",
        serve={"roots": [str(tmp_path)]},
    )
    findings = [*cluster.examine_cluster(settings)]
    assert [one.name for one in findings][:2] == ["access to Ray", "Ray"]
    assert findings[1].found.startswith("1 nodes, 4 CPUs")
    nodes = findings[2:-1]
    assert nodes
    assert all(one.state != "bad" for one in nodes), nodes
    assert not [*tmp_path.rglob(".cryoray-doctor-*")]
