"""What listens where while cryoray runs, as the kernel has it: SECURITY.md says the same."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryoray.protocol.client import Client

TOKEN = "a-token-for-tests"
AT_HOME = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def listening() -> dict[int, tuple[str, int]]:
    """Local address and port by inode, of sockets that wait for TCP connections on this machine."""
    found = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, _, port = fields[1].partition(":")
                words = [address[i : i + 8] for i in range(0, len(address), 8)]
                packed = b"".join(struct.pack("<I", int(word, 16)) for word in words)
                found[int(fields[9])] = (socket.inet_ntop(family, packed), int(port, 16))
    return found


def below(process: int) -> dict[int, str]:
    """Commands of a process and all that came of it, by number."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
                commands[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
    found = {process}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: commands.get(one, "") for one in found}


def held(process: int) -> Iterator[int]:
    """Inodes of the sockets that a process holds."""
    try:
        for one in Path(f"/proc/{process}/fd").iterdir():
            target = str(one.readlink())
            if target.startswith("socket:["):
                yield int(target[8:-1])
    except OSError:
        return


def open_to_all(process: int) -> list[str]:
    """Commands of a process and all below it that wait for connections from other machines."""
    sockets = listening()
    return [
        command
        for one, command in below(process).items()
        for inode in held(one)
        if inode in sockets and sockets[inode][0] not in AT_HOME
    ]


def is_rays(command: str) -> bool:
    """Whether it is a part of Ray, which has no setting for where it listens (SECURITY.md)."""
    parts = (
        *("gcs_server", "raylet", "ray::", "default_worker", "ray/dashboard", "runtime_env"),
        "ray/autoscaler/_private/monitor.py",
    )
    return any(part in command for part in parts)


@contextmanager
def running(arguments: list[str], folder: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Python with some arguments, in a process of its own that has a Ray and a Prefect of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(folder / "prefect"),
        **more,
        "CRYORAY_TOKEN": TOKEN,
        "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token"),
        "CRYORAY_RUNTIME__CPUS": "4",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen([sys.executable, *arguments], env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(120)


@pytest.mark.ray
@pytest.mark.slow
def test_the_service_listens_at_home_has_its_share_of_cores_and_ends_in_order(
    tiny_ensemble: Path, project: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["serve", "--ensemble", str(tiny_ensemble), "--root", str(project.parent)]
    command = ["-m", "cryoray.cli.main", *arguments, "--port", str(port)]
    with running(command, tmp_path) as process:
        with Client(f"http://127.0.0.1:{port}", TOKEN) as client:
            end = time.monotonic() + 200
            while not client.healthy():
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.2)
            assert len(client.judge(project)) == 175
        # Verdicts are no less urgent than whatever else computes here.
        replicas = [one for one, what in below(process.pid).items() if "ServeReplica" in what]
        nice = {os.getpriority(os.PRIO_PROCESS, one) for one in (process.pid, *replicas)}
        assert len(replicas) >= 3
        assert len(nice) == 1
        # The command itself is a driver of Ray's, and listens as every worker does.
        elsewhere = [one for one in open_to_all(process.pid) if "cryoray.cli.main" not in one]
        assert all(is_rays(command) for command in elsewhere), elsewhere
        assert {address for address, at in listening().values() if at == port} == {"127.0.0.1"}
        # Sixteen unfinished heads are closed by Ray's proxy itself.
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(16)]
        for one in slow:
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            one.settimeout(60)
        assert {one.recv(10) for one in slow} == {b""}
        for one in slow:
            one.close()
    assert process.returncode == 0


_FLOW = """
import sys
from pathlib import Path
from flows.classify import classify
source, out, ensemble = sys.argv[1:]
classify(Path(source), Path(out), {}, ensemble)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray, and Prefect's server, take their time on a busy machine
@pytest.mark.parametrize("as_flow", [False, True], ids=["command", "flow"])
def test_classify_on_ray_and_a_flow_with_its_server_listen_at_home(
    tiny_ensemble: Path, project: Path, tmp_path: Path, as_flow: bool
) -> None:
    out = str(tmp_path / "out")
    command = ["-m", "cryoray.cli.main", "classify", str(project), "--out", out]
    command += ["--ensemble", str(tiny_ensemble)]
    if as_flow:
        command = ["-c", _FLOW, str(project), out, str(tiny_ensemble)]
    seen: set[str] = set()
    with running(command, tmp_path, CRYORAY_CLASSIFY__LOCAL_MAX_MIB="0") as process:
        driver = below(process.pid)[process.pid]
        while process.poll() is None:
            seen.update(open_to_all(process.pid))
            time.sleep(1.0)
    assert process.returncode == 0
    # The command itself is a driver of Ray's, and listens as every worker does.
    assert any("raylet" in one for one in seen), "it ran without Ray"
    assert [one for one in seen if not is_rays(one) and one != driver] == []
