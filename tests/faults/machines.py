"""Machines of a small network, on this one: each has an address, a cable and a power switch.

Each has a folder of its own; the rest of the disk is storage that they share. They are namespaces of
Linux on a bridge (Debian's iproute2); this machine's own network is not touched.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_NET = "10.77.0"
RAY_PORT, REDIS_PORT = 6379, 7000


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of some MiB."""
    folder.mkdir()
    size = f"size={mebibytes}m"
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "cryoray", str(folder)],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield folder
    finally:
        # Where a test fails, something may have a file open there, and what failed is what is told.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk: Path, but: int = 0) -> Iterator[None]:
    """Not a byte is free on a disk meanwhile, whatever is removed; or, at the beginning, so many."""
    filler, enough = disk / "filler", threading.Event()

    def fill() -> None:
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def keep_full() -> None:
        while not enough.wait(0.01):
            fill()

    fill()
    os.truncate(filler, max(0, filler.stat().st_size - but))
    keeping = threading.Thread(target=keep_full)
    if not but:
        keeping.start()
    try:
        yield
    finally:
        enough.set()
        if not but:
            keeping.join()
        filler.unlink()


def possible() -> bool:
    """Whether this user may make namespaces here."""
    name = f"cryoray-{os.getpid()}-try"
    try:
        subprocess.run(["ip", "netns", "add", name], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True


@dataclass
class Machine:
    """One of them.

    Attributes:
        name: of its network's namespace.
        address: in the network.
        temp: the folder of which each machine sees its own.
        disk: MiB of a small disk that its folder is; 0 where it is on this machine's.
        environment: of its processes, beside what this process has.
    """

    name: str
    address: str
    temp: Path
    disk: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    _first: int = 0  # the process with whose end all others end
    _started: list[subprocess.Popen[str]] = field(default_factory=list)
    _mounted: ExitStack = field(default_factory=ExitStack)

    @property
    def own(self) -> Path:
        """Where this machine sees the folder of the machine's own."""
        return self.temp.with_name(self.name)

    def on(self) -> None:
        """Switch it on; its folder is empty, as /tmp is."""
        shutil.rmtree(self.own, ignore_errors=True)
        if self.disk:
            self._mounted.enter_context(small_disk(self.own, self.disk))
        else:
            self.own.mkdir()
        boot = f"mount --bind {self.own} {self.temp} && touch {self.temp}/on && exec sleep infinity"
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", boot]
        started = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *apart], stderr=subprocess.DEVNULL, text=True
        )
        self._started.append(started)
        while not (self.own / "on").exists():
            assert started.poll() is None, "namespaces of processes can be made here"
            time.sleep(0.05)
        self._first = int(Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text())

    def off(self) -> None:
        """Cut its power: all its processes end at once."""
        if self._first:
            with suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGKILL)
            self._first = 0
        while self._started:
            self._started.pop().wait(timeout=60)
        self._mounted.close()

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """A process on it."""
        started = subprocess.Popen(
            ["nsenter", "-t", str(self._first), "--net", "--mount", "--pid", "--", *command],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", **self.environment},
            text=True,
            **options,
        )
        self._started.append(started)
        return started

    def kill(self, started: subprocess.Popen[str]) -> None:
        """End a process that was started on it, at once."""
        inside = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int(inside.read_text()), signal.SIGKILL)

    def ray(self, *arguments: str, cpus: int) -> None:
        """Start Ray on it, and wait until it says that it runs."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-gpus=0"]
        command += [f"--node-ip-address={self.address}", f"--num-cpus={cpus}"]
        command += ["--object-store-memory=94371840", *arguments]
        started = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = started.communicate(timeout=120)
        assert started.returncode == 0, said[-2000:]

    def head(self) -> None:
        """Start Ray's head on it, without processors."""
        plain = ("--include-dashboard=false", f"--temp-dir={self.temp}")
        self.ray("--head", f"--port={RAY_PORT}", *plain, cpus=0)

    def worker(self, head: Machine, cpus: int) -> None:
        """Start Ray on it, as a worker of a head."""
        self.ray(f"--address={head.address}:{RAY_PORT}", cpus=cpus)

    def has_ray(self) -> bool:
        """Whether Ray runs on it: it ends by itself on a machine that was cut off for too long."""
        with suppress(FileNotFoundError):
            inside = Path(f"/proc/{self._first}/task/{self._first}/children").read_text().split()
            # One that has ended, and that nobody has asked about, has a name and no command.
            began = [
                Path(f"/proc/{one}/cmdline").read_bytes().partition(b"\0")[0] for one in inside
            ]
            return any(command.endswith(b"/raylet") for command in began)
        return False

    def pull(self) -> None:
        """Pull its cable."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Put it in again."""
        _ip("-n", self.name, "link", "set", "eth0", "up")
        _ip("-n", self.name, "route", "replace", "default", "via", f"{_NET}.254")


_NUMBERS = itertools.count()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network(count: int, temp: Path, disk: int = 0) -> Iterator[list[Machine]]:
    """Some machines that reach one another and nothing else; what runs on them ends with the context.

    Args:
        count: of the machines.
        temp: a folder that each of them has for itself; short, as paths of Unix sockets are.
        disk: MiB of it, where it is to be a small disk.
    """
    temp.mkdir(parents=True, exist_ok=True)
    mark = f"cryoray-{os.getpid()}-{next(_NUMBERS)}"
    switch = f"{mark}-switch"
    made = [
        # Their names all mean 127.0.0.1, by which no machine finds another.
        Machine(f"{mark}-{number}", f"{_NET}.{number}", temp, disk, {"GLOO_SOCKET_IFNAME": "eth0"})
        for number in range(1, count + 1)
    ]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "addr", "add", f"{_NET}.254/24", "dev", "bridge")
        for each in ("lo", "bridge"):
            _ip("-n", switch, "link", "set", each, "up")
        for number, one in enumerate(made):
            _ip("netns", "add", one.name)
            cable = ("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0")
            _ip("-n", switch, *cable, "netns", one.name)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", one.name, "addr", "add", f"{one.address}/24", "dev", "eth0")
            _ip("-n", one.name, "link", "set", "lo", "up")
            one.plug()
            one.on()
        yield made
    finally:
        for one in made:
            one.off()
        for name in (switch, *(one.name for one in made)):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
