"""What ``cryoray doctor --cluster`` checks on every node of a Ray cluster, and of Prefect."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoray.diagnostics.finding import Finding
from cryoray.protocol.network import by_proxy

if TYPE_CHECKING:
    from cryoray.settings import Settings

_GIB = 2**30
_PACKAGES = ("cryoray", "ray", "torch", "numpy", "pyarrow")
#: Seconds in which a node must answer; the first worker of a node takes its time to start.
_PATIENCE = 120.0
#: Numbers that Ray gives its nodes are long.
_SHORT = 8


def look(probes: Mapping[str, str]) -> dict[str, Any]:
    """What a node sees.

    Args:
        probes: files and what is in them, as the asking machine wrote them.

    Returns:
        ``versions`` by package, ``shm`` (bytes of /dev/shm), ``gpus`` (how many devices there are),
        ``unseen``: the files that are not there, or hold something else, and ``loopback``: the node would
        tell others an address at which only it itself is found.
    """
    shm = Path("/dev/shm")
    return {
        "versions": {"Python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "shm": shutil.disk_usage(shm).total if shm.is_dir() else 0,
        "gpus": len([*Path("/dev").glob("nvidia[0-9]*")]),
        "unseen": [file for file, text in probes.items() if not _holds(Path(file), text)],
        "loopback": _loopback(),
    }


def _loopback() -> bool:
    """Whether Gloo, by which training's workers talk, would take 127.… for this node's address.

    It looks up the node's own name unless ``GLOO_SOCKET_IFNAME`` says which interface to use.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return False
    try:
        return ip_address(socket.gethostbyname(socket.gethostname())).is_loopback
    except OSError:
        return True  # it falls back to that


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="ascii") == text
    except (OSError, UnicodeDecodeError):
        return False


def examine_cluster(settings: Settings) -> Iterator[Finding]:
    """Join the Ray that the settings name, and look at each of its nodes; and at Prefect.

    Storage is checked by a file that this machine writes and every node must find.
    """
    yield _ray_token()
    yield from _nodes(settings)
    yield prefect_server(os.environ.get("PREFECT_API_URL"))


def _nodes(settings: Settings) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cryoray.engine import runtime
    from cryoray.errors import SettingsError

    try:
        runtime.connect(settings.runtime)
    except SettingsError as error:
        yield Finding("Ray", error.what, "bad", error.remedy or "")
        return
    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    yield Finding(
        "Ray",
        f"{len(nodes)} nodes, {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs",
    )
    folders = dict.fromkeys((settings.registry, *(settings.serve.roots or (Path.cwd(),))))
    with ExitStack() as stack:
        probes = {}
        for folder in folders:
            probe, text = folder / f".cryoray-doctor-{secrets.token_hex(4)}", secrets.token_hex(8)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe.write_text(text, encoding="ascii")
            except OSError as error:
                yield Finding(
                    "storage", f"{folder}: {error.strerror}", "bad", f"make {folder} writable"
                )
                continue
            stack.callback(probe.unlink, missing_ok=True)
            probes[str(probe)] = text
        asked = {
            node["NodeID"]: ray.remote(look)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(probes)
            for node in nodes
        }
        here = look({})["versions"]
        for node in nodes:
            name = f"{node['NodeManagerHostname']} ({node['NodeID'][:_SHORT]})"
            try:
                seen = ray.get(asked[node["NodeID"]], timeout=_PATIENCE)
            except ray.exceptions.RayError as error:
                first = str(error).strip().partition("\n")[0]
                yield Finding(
                    name, f"does not work: {first}", "bad", "see its page in Ray's dashboard"
                )
                continue
            seen["loopback"] &= len(nodes) > 1
            yield from judged(name, seen, here, node["Resources"])


def judged(
    name: str, seen: Mapping[str, Any], here: Mapping[str, str], resources: Mapping[str, float]
) -> Iterator[Finding]:
    """What is good and bad about a node.

    Args:
        name: of the node.
        seen: what `look` found there.
        here: versions by package, on the asking machine.
        resources: of the node, as Ray counts them.
    """
    other = {
        package: found for package, found in seen["versions"].items() if found != here[package]
    }
    if other:
        yield Finding(
            name,
            ", ".join(f"{package} {found}" for package, found in other.items()),
            "bad",
            "here: "
            + ", ".join(f"{package} {here[package]}" for package in other)
            + "; use one image or one environment everywhere",
        )
    if seen["unseen"]:
        folders = ", ".join(str(Path(file).parent) for file in seen["unseen"])
        yield Finding(
            name,
            f"does not see {folders} of this machine",
            "bad",
            "mount the same file system at the same place on every node",
        )
    store = resources.get("object_store_memory", 0.0)
    if seen["shm"] < store:
        yield Finding(
            name,
            f"/dev/shm has {seen['shm'] / _GIB:.1f} GiB for {store / _GIB:.1f} GiB of objects",
            "warning",
            "give the container more shared memory, or ray start --object-store-memory less",
        )
    if seen["loopback"]:
        yield Finding(
            name,
            "its own name means 127.… to it, so a training on several nodes cannot connect",
            "warning",
            "give it its address in /etc/hosts, or GLOO_SOCKET_IFNAME=INTERFACE before ray start",
        )
    if seen["gpus"] > resources.get("GPU", 0):
        yield Finding(
            name,
            f"{seen['gpus']} GPUs, of which Ray uses {resources.get('GPU', 0):.0f}",
            "warning",
            "ray start --num-gpus, or the pod's nvidia.com/gpu",
        )
    if not other and not seen["unseen"]:
        yield Finding(
            name,
            f"same versions, same storage, {resources.get('CPU', 0):.0f} CPUs,"
            f" {resources.get('GPU', 0):.0f} GPUs, /dev/shm {seen['shm'] / _GIB:.1f} GiB",
        )


def _ray_token(environment: Mapping[str, str] = os.environ) -> Finding:
    """Whoever reaches a Ray without a token executes code on all its nodes."""
    name = "access to Ray"
    if environment.get("RAY_AUTH_MODE", "token") == "token":
        return Finding(name, "by token")
    return Finding(
        name,
        "open to anyone who can reach its ports",
        "bad",
        "RAY_AUTH_MODE=token on all nodes, and one token (RAY_AUTH_TOKEN_PATH)",
    )


def prefect_server(url: str | None) -> Finding:
    """Whether the server that flows are configured for answers.

    Args:
        url: its API, as PREFECT_API_URL has it; None: there is none.
    """
    name = "Prefect"
    if not url:
        return Finding(name, "no server: each flow starts one of its own", "good")
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=10, trust_env=by_proxy(url))
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return Finding(
            name,
            f"{url} does not answer: {error}",
            "bad",
            "start it (`prefect server start`), or set PREFECT_API_URL right",
        )
    return Finding(name, f"{url} answers")
