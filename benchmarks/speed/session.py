"""How soon after a stack has settled its verdicts are on disk, how much a session can take, what faults cost.

The whole chain runs as people run it: ``cryoray serve`` and ``cryoray watch --service`` in processes of
their own, and then ``cryoray watch`` that judges by itself (parts ``arriving-alone`` and so on), with the
ensemble that ships: sessions judge by a profile, which is renewed as images come. A microscope that writes
256 px stacks of 280 images in float16 stands before it. The seconds of each part are
``CRYORAY_BENCH_SECONDS`` (40 by default; an hour of microscope wants 1,200, the soak 3,600), the images a
second ``CRYORAY_BENCH_RATE``, the seconds between faults ``CRYORAY_BENCH_FAULT_EVERY``;
``python -m benchmarks.speed.session soak`` runs that part alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import Row, main, result
from cryoray.formats.mrc import StackWriter
from cryoray.formats.star import parse
from cryoray.models.registry import shipped
from cryoray.session.ledger import Ledger
from cryoray.session.schema import FATES

SECONDS = float(os.environ.get("CRYORAY_BENCH_SECONDS", "40"))
RATE = float(os.environ.get("CRYORAY_BENCH_RATE", "140"))
IMAGES, BOX = 280, 256
SETTLE, POLL = 2.0, 0.5
#: Images an hour of a microscope gives, as the goal counts them, and how much faster it is replayed.
HOUR, FASTER = 500_000, 3
FAULT_EVERY = float(os.environ.get("CRYORAY_BENCH_FAULT_EVERY", min(60.0, SECONDS / 4)))
#: Seconds between two hostile files, two slow clients, and two looks at the service's health.
HOSTILE_EVERY, SLOW_EVERY, HEALTH_EVERY = min(20.0, SECONDS / 8), 5.0, 1.0
#: What is killed in the soak, by a word in its title; None: the watcher.
VICTIMS = (None, b"judge", b"preparer", b"ingress", b"serving.parsers", b"supervisor")
TOKEN = "of-the-benchmark"
#: For the service to start, which on a busy machine takes its time.
_START_SECONDS = 1200.0
#: Of a watcher that judges by itself.
_PORT_ALONE = 8392
_RECORDS = "mic_*.mrcs/record.json"
_EVENTS = "cryoray/bench/events.jsonl"
_MARK = f"cryoray-benchmark-{os.getpid()}"


def measure() -> dict[str, Any]:
    parts = {"arriving": _arriving, "backlog": _backlog, "soak": _soak}
    wanted = (sys.argv[1:] if __name__ == "__main__" else []) or [
        *parts,
        *map("{}-alone".format, parts),
    ]
    rows = []
    with tempfile.TemporaryDirectory(prefix="cryoray-session-") as name:
        work = Path(name)
        ensemble = shipped("particle")
        assert ensemble is not None
        masters = [_images(work / f"master-{seed}.mrcs", seed) for seed in range(4)]
        if on_ray := [one for one in wanted if one in parts]:
            with _service(work, ensemble) as url:
                service = ("--service", url)
                rows += [parts[one](work / one, masters, service) for one in on_ray]
        for one in wanted:
            if one not in parts:
                own = ("--ensemble", str(ensemble))
                rows.append(parts[one.removesuffix("-alone")](work / one, masters, own))
    return result(
        "From files settled to verdicts on disk: how soon, how fast, and through faults?",
        rows,
        ratios=(),
        notes=[
            f"Stacks of {IMAGES} images, {BOX} px, float16, with a STAR file each; settle time {SETTLE:g} s,"
            f" looked at every {POLL:g} s; {SECONDS:g} s for each part. Seconds are counted from the moment"
            " at which the later of both files had not changed for the settle time.",
            f"Goals: the 99th percentile under 5 s at {RATE:g} images a second on two cores;"
            f" {HOUR * FASTER / 3600:,.0f} images a second, which is {FASTER} times an hour of {HOUR:,};"
            " through faults nothing lost and nothing twice.",
            "In the backlog and in the soak, stacks are hard links to four files, which are in memory.",
            f"Faults: every {FAULT_EVERY:g} s, at random, the watcher, a judge, a preparer, an ingress, the"
            " process that opens sources or the supervisor is killed (SIGKILL); the watcher is started again"
            " after a second, the others by Ray. Memory is without what processes share counted twice (PSS):"
            " the median of the first third and of the last.",
            f"In the soak a hostile file comes every {HOSTILE_EVERY:g} s (names with a newline, without"
            " UTF-8, with both quotes; stacks cut short; sparse ones of 2,147,483,647 images and of 65,536"
            f" px; a STAR file of 50,000 columns) and a client every {SLOW_EVERY:g} s that sends a byte a"
            " second for half a minute: a head, a login, or a stack. Health is asked every second, on a"
            " connection of its own.",
        ],
    )


def _arriving(root: Path, masters: list[Path], judged_by: tuple[str, str]) -> Row:
    """Stacks appear at the rate of a fast microscope."""
    root.mkdir()
    stacks = max(4, int(SECONDS * RATE / IMAGES))
    with _watcher(root, judged_by) as watcher:
        time.sleep(3.0)  # it has started
        begun = time.monotonic()
        for number in range(stacks):
            time.sleep(max(0.0, begun + number * IMAGES / RATE - time.monotonic()))
            _write(root, number, masters[number % len(masters)], copy=True)
        _until(root, stacks, 120.0)
        memory = _memory(watcher.pid)
    delays = _delays(root)
    return _row(root.name, root, RATE, delays, memory, 0)


def _backlog(root: Path, masters: list[Path], judged_by: tuple[str, str]) -> Row:
    """A session that is there already: as fast as it goes."""
    root.mkdir()
    stacks = max(6, int(SECONDS * HOUR * FASTER / 3600 / IMAGES))
    for number in range(stacks):
        _write(root, number, masters[number % len(masters)])
    time.sleep(SETTLE)
    with _watcher(root, judged_by) as watcher:
        done = _until(root, stacks, 8 * SECONDS + 60)
        memory = _memory(watcher.pid)
    times = sorted(record.stat().st_mtime for record in root.rglob(_RECORDS))
    rate = (done - 1) * IMAGES / max(1e-9, times[-1] - times[0])
    return _row(root.name, root, rate, [], memory, 0)


def _soak(root: Path, masters: list[Path], judged_by: tuple[str, str]) -> Row:
    """Half the rate, hostile files, slow clients, and a fault every so often."""
    alone = judged_by[0] != "--service"
    url = f"http://127.0.0.1:{_PORT_ALONE}" if alone else judged_by[1]
    victims = [one for one in VICTIMS if not alone or one in (None, b"serving.parsers")]
    root.mkdir()
    (root / "hostile").mkdir()
    chance = random.Random(0)
    stacks = hostile = rejected = 0
    faults: Counter[str] = Counter()
    memory, service, loads = [], [], []
    process = _start(root, judged_by)
    until = time.monotonic() + _START_SECONDS
    while not _healthy(url):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("it does not start")
        time.sleep(0.5)
    begun = time.monotonic()
    due, hostile_due = begun + FAULT_EVERY, begun
    with _slow_clients(url), _health(url) as health:
        while time.monotonic() < begun + SECONDS:
            _write(root, stacks, masters[stacks % len(masters)])
            stacks += 1
            time.sleep(IMAGES / (RATE / 2))
            memory.append(_memory(process.pid))
            service.append(_memory_of_service())
            loads.append(os.getloadavg()[0])
            if time.monotonic() >= hostile_due:
                rejected += _write_hostile(root / "hostile", hostile)
                hostile, hostile_due = hostile + 1, time.monotonic() + HOSTILE_EVERY
            if time.monotonic() >= due:
                victim = chance.choice(victims)
                if victim is None:
                    process.kill()
                    process.wait()
                    time.sleep(1.0)
                    process = _start(root, judged_by)
                else:
                    _kill(victim)
                faults[(victim or b"watcher").decode()] += 1
                due = time.monotonic() + FAULT_EVERY
                print(
                    f"{time.monotonic() - begun:.0f} s: {stacks} stacks, {hostile} hostile files, killed"
                    f" {dict(faults)}; health {len(health)} times, worst"
                    f" {max(health, default=(0.0, 0))[0]:.2f} s, late {sum(one > 2 for one, _ in health)},"
                    f" not ok {sum(o != 200 for _, o in health)};"
                    f" MiB {memory[-1]:.0f} {service[-1]:.0f}; load {loads[-1]:.1f}",
                    file=sys.stderr,
                    flush=True,
                )
        _until(root, stacks, 300.0)
        _until_rejected(root, rejected, 300.0)
    _stop(process)
    _check(root, stacks)
    row = _row(root.name, root, RATE / 2, _delays(root), max(memory), sum(faults.values()))
    seconds = [one for one, status in health if status]
    # The median of each third: a replica that was killed is missing for a while.
    return row | {
        "hostile files": hostile,
        "watcher MiB": _first_and_last(memory),
        "service MiB": _first_and_last(service),
        "killed": ", ".join(f"{name} {n}" for name, n in faults.most_common()),
        "health, asked": len(health),
        "health, worst s": max(seconds),
        "health, later than 2 s": sum(one > 2 for one in seconds),
        "health, not ok": sum(status not in (0, 200) for _, status in health),
        "health, nobody there": sum(status == 0 for _, status in health),
        "load, median": float(np.median(loads)),
        "load, most": max(loads),
    }


def _first_and_last(values: list[float]) -> str:
    first, _, last = np.array_split(values, 3)
    return f"{np.median(first):,.0f} to {np.median(last):,.0f}"


#: Names that no STAR file can hold; and headers (columns, rows, images, mode) with the bytes that follow.
_NAMES = (b"new\nline-%d.mrcs", b"no-utf-8-\xff-%d.mrcs", b"both'\"-%d.mrcs")
_HEADERS = (
    ((32, 32, 280, 2), 3 * 4096),
    ((1, 1, 2**31 - 1, 0), 2**31 - 1),
    ((65536, 32768, 1, 0), 2**31),
)


def _write_hostile(folder: Path, number: int) -> bool:
    """A file that no session should stumble over, of one sort after the other; whether it is rejected.

    A STAR file that cannot be read names no particles, and is passed over as others are.
    """
    sort = number % (len(_NAMES) + len(_HEADERS) + 1)
    if sort == len(_NAMES) + len(_HEADERS):
        labels = "\n".join(f"_rln{n}" for n in range(50_000))
        text = f"data_particles\n\nloop_\n_rlnImageName\n{labels}\n1@absent.mrcs {'1 ' * 50_000}\n"
        (folder / f"wide-{number}.star").write_text(text)
        return False
    name = _NAMES[sort] if sort < len(_NAMES) else b"broken-%d.mrcs"
    path = folder / os.fsdecode(name % number)
    with StackWriter(path, 32, 32, "float32", 1.0) as stack:
        stack.append(np.random.default_rng(number).normal(size=(8, 32, 32)).astype(np.float32))
    if sort >= len(_NAMES):
        header, size = _HEADERS[sort - len(_NAMES)]
        with path.open("r+b") as file:
            file.write(struct.pack("<4i", *header))
            file.truncate(1024 + size)  # what is not there is a hole, which takes no room
    return True


@contextmanager
def _slow_clients(url: str) -> Iterator[None]:
    """While the block lasts, clients come that send a byte a second."""
    address = httpx.URL(url)
    done = threading.Event()
    judge = f"POST /v1/judge HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    begin = (
        "GET /healthz HTTP/1.1\r\nX-Slow: ",
        "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n",
        f"{judge}Content-Type: application/octet-stream\r\nContent-Length: 9000\r\n\r\n",
        f"{judge}Content-Type: application/json\r\nContent-Length: 60\r\n\r\n",
    )

    def come() -> None:
        here: list[tuple[socket.socket, float]] = []
        number, due = 0, time.monotonic()
        while not done.wait(1.0):
            if time.monotonic() >= due:
                with suppress(OSError):
                    one = socket.create_connection((address.host, address.port or 80), 5)
                    here.append((one, time.monotonic() + 30))
                    one.sendall(begin[number % len(begin)].encode())
                number, due = number + 1, due + SLOW_EVERY
            for one, until in list(here):
                try:
                    one.sendall(b"x")
                    gone = time.monotonic() > until
                except OSError:
                    gone = True
                if gone:
                    one.close()
                    here.remove((one, until))
        for one, _ in here:
            one.close()

    with ThreadPoolExecutor(1, "slow") as thread:
        coming = thread.submit(come)
        try:
            yield
        finally:
            done.set()
    coming.result()


@contextmanager
def _health(url: str) -> Iterator[list[tuple[float, int]]]:
    """While the block lasts, ask for the service's health; seconds and status of each answer."""
    found: list[tuple[float, int]] = []
    done = threading.Event()
    address = url.removeprefix("http://")

    def look() -> None:
        while not done.wait(HEALTH_EVERY):
            # Not by httpx, which takes longer to make a client than the service to answer.
            begun, status = time.monotonic(), 0
            with (
                suppress(OSError, HTTPException),
                closing(HTTPConnection(address, timeout=60)) as http,
            ):
                http.request("GET", "/healthz")
                status = http.getresponse().status
            found.append((time.monotonic() - begun, status))
            if found[-1][0] > 2 or status != 200:
                load = os.getloadavg()[0]
                print(f"health: {found[-1]}, load {load:.1f}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(1, "health") as thread:
        looking = thread.submit(look)
        try:
            yield found
        finally:
            done.set()
    looking.result()


def _row(
    what: str, root: Path, rate: float, delays: list[float], memory: float, faults: int
) -> Row:
    stacks = len(list(root.rglob(_RECORDS)))
    return {
        "part": what,
        "images": stacks * IMAGES,
        "images/s": rate,
        "p50 s": float(np.percentile(delays, 50)) if delays else None,
        "p99 s": float(np.percentile(delays, 99)) if delays else None,
        "worst s": max(delays) if delays else None,
        "faults": faults,
        "watcher MiB": memory,
        "service MiB": None,
    }


def _delays(root: Path) -> list[float]:
    """Seconds from settled to the first verdicts of each stack; later ones are by a newer profile."""
    first: dict[str, float] = {}
    for record in root.rglob(_RECORDS):
        first[record.parent.name] = record.stat().st_mtime
    for line in map(json.loads, (root / _EVENTS).read_text().splitlines()):
        if line["event"] == "micrograph.judged":
            name = Path(line["data"]["stack"]).name
            first[name] = min(first[name], line["time"])
    found = []
    for name, judged in first.items():
        stack = root / name
        star = stack.with_name(f"{stack.stem}_extract.star")
        found.append(judged - max(star.stat().st_ctime, stack.stat().st_mtime) - SETTLE)
    return found


def _check(root: Path, stacks: int) -> None:
    """Every row judged once: in the ledger, in the stacks' own files, and in the merged ones."""
    ledger = Ledger(root / "cryoray/ledger.sqlite")
    totals = ledger.totals("bench")["particle/judged"]
    ledger.close()
    if sum(totals[name] for name in FATES) != stacks * IMAGES:
        raise RuntimeError(f"{totals} of {stacks * IMAGES} rows")
    own: Counter[str] = Counter()
    for file in root.rglob("mic_*.mrcs/verdicts.parquet"):
        own.update(pq.read_table(file)["image"].to_pylist())
    merged: Counter[str] = Counter()
    for side in ("kept", "discarded", "review"):
        table = parse(root / f"cryoray/bench/{side}.star")["particles"]
        if len(table):
            merged.update(table.column("rlnImageName").tolist())
    if own != merged or set(own.values()) != {1} or len(own) != stacks * IMAGES:
        raise RuntimeError(f"{len(own)} and {len(merged)} images of {stacks * IMAGES}")
    lines = (root / _EVENTS).read_text().splitlines()
    ids = Counter(json.loads(line)["id"] for line in lines)
    if set(ids.values()) != {1}:
        raise RuntimeError("an event was told twice")


def _until(root: Path, stacks: int, seconds: float) -> int:
    """Wait until so many stacks have verdicts; how many have."""
    end = time.monotonic() + seconds
    while (done := sum(1 for _ in root.rglob(_RECORDS))) < stacks and time.monotonic() < end:
        time.sleep(0.5)
    if done < stacks:
        raise RuntimeError(f"{done} of {stacks} stacks after {seconds:g} s")
    while (left := _outdated(root)) and time.monotonic() < end:
        time.sleep(0.5)
    if left:
        raise RuntimeError(f"{left} stacks are judged by an older profile after {seconds:g} s")
    return done


def _outdated(root: Path) -> int:
    """How many stacks were judged by another profile than the session's last."""
    ledger = Ledger(root / "cryoray/ledger.sqlite")
    session = ledger.session("bench")
    profile = session.profile["digest"] if session and session.profile else None
    left = ledger.outdated("bench", profile) if profile else []
    ledger.close()
    return len(left)


def _until_rejected(root: Path, files: int, seconds: float) -> None:
    """Wait until so many files were rejected, each once, with a reason."""
    end = time.monotonic() + seconds
    ledger = Ledger(root / "cryoray/ledger.sqlite")
    while len(rows := ledger.stacks("bench", "rejected")) < files and time.monotonic() < end:
        time.sleep(1.0)
    ledger.close()
    if len(rows) != files or not all(row.reason for row in rows):
        raise RuntimeError(f"{len(rows)} of {files} hostile files were rejected")


def _images(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    with StackWriter(path, BOX, BOX, "float16", 1.06) as stack:
        for _ in range(IMAGES // 40):
            stack.append(rng.normal(size=(40, BOX, BOX)).astype(np.float32))
    return path


def _write(root: Path, number: int, master: Path, *, copy: bool = False) -> None:
    name = f"mic_{number:05d}"
    columns = ("rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV")
    head = [f"_{column} #{at}" for at, column in enumerate(columns, 1)]
    rows = [f"{i:06d}@{name}.mrcs {name}.mrc 1 12000 11800" for i in range(1, IMAGES + 1)]
    text = ["", "data_images", "", "loop_", *head, *rows, ""]
    (root / f"{name}_extract.star").write_text("\n".join(text))
    if copy:
        (root / f"{name}.mrcs").write_bytes(master.read_bytes())
    else:
        (root / f"{name}.mrcs").hardlink_to(master)


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "CRYORAY_TOKEN": TOKEN, "CRYORAY_MARK": _MARK, **more}


@contextmanager
def _service(work: Path, ensemble: Path) -> Iterator[str]:
    """``cryoray serve`` until the block ends."""
    port = 8391
    words = ["serve", "--ensemble", str(ensemble), "--root", str(work), "--port", str(port)]
    environment = _environment(CRYORAY_RUNTIME__DASHBOARD="false")
    with (work / "service.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cryoray.cli.main", *words],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=work,
        )
        try:
            until = time.monotonic() + _START_SECONDS
            while not _healthy(f"http://127.0.0.1:{port}"):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((work / "service.log").read_text()[-2000:])
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def _watcher(root: Path, judged_by: tuple[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = _start(root, judged_by)
    try:
        yield process
    finally:
        _stop(process)


def _start(root: Path, judged_by: tuple[str, str]) -> subprocess.Popen[bytes]:
    quick = {"CRYORAY_WATCH__SETTLE": f"{SETTLE}", "CRYORAY_WATCH__POLL": f"{POLL}"}
    quick["CRYORAY_SERVE__PORT"] = f"{_PORT_ALONE}"
    words = ["watch", str(root), "--session", "bench", *judged_by]
    return subprocess.Popen(
        [sys.executable, "-m", "cryoray.cli.main", *words],
        env=_environment(**quick),
        stdout=subprocess.DEVNULL,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _replicas() -> Iterator[tuple[int, bytes]]:
    """Number and title of each replica of our own service, and of the processes that open sources for it.

    They have our mark among their variables.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            mine = f"CRYORAY_MARK={_MARK}".encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        if mine and any(word in title for word in (b"ServeReplica", b"serving.parsers")):
            yield int(folder.name), title


def _kill(what: bytes) -> None:
    """Kill one process of our own service that has this in its title."""
    found = next((pid for pid, title in _replicas() if what in title), None)
    if found is not None:
        os.kill(found, signal.SIGKILL)


def _memory_of_service() -> float:
    """MiB of all replicas and of the processes that open sources."""
    return sum(_memory(pid) for pid, _ in _replicas())


def _memory(pid: int) -> float:
    """Resident MiB of a process; what it shares with others, its share of that (PSS)."""
    try:
        status = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    line = next((one for one in status.splitlines() if one.startswith("Pss:")), "Pss: 0")
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(measure)
