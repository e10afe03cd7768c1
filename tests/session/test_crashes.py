"""A watcher that is killed at any moment, again and again: at the end every row is judged exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import starfile

from cryoray.session.ledger import Ledger
from cryoray.session.schema import FATES
from tests import examples
from tests.faults.machines import filled, small_disk
from tests.session.service import TOKEN, running

pytestmark = pytest.mark.long

STACKS, IMAGES = 15, 12


def start(root: Path, url: str, ledger: str, *words: str) -> subprocess.Popen[bytes]:
    quick = {"POLL": "0.05", "SETTLE": "0.1", "RESCAN": "0.5", "MERGE_EVERY": "0.2"}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cryoray.cli.main", "watch", root, "--session", "s"),
            *("--service", url, "--ledger", ledger),
            *words,
        ],
        env={
            **os.environ,
            "CRYORAY_TOKEN": TOKEN,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **{f"CRYORAY_WATCH__{name}": value for name, value in quick.items()},
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def write(root: Path, number: int, seed: int) -> None:
    """A stack and its STAR file, both by rename, as careful programs do."""
    name = f"mic_{number}"
    rows = [f"{i:06d}@{name}.mrcs mic_{number}.mrc 1 9000 8800 4" for i in range(1, IMAGES + 1)]
    examples.write_star(root / f".{name}_extract.star", rows).rename(root / f"{name}_extract.star")
    examples.write_stack(root / f"{name}.mrcs", examples.particles(IMAGES, seed=seed))


@pytest.mark.parametrize("seed", [0])
def test_every_row_is_judged_once_however_often_the_watcher_is_killed(
    tiny_ensemble: Path, tmp_path: Path, seed: int, url: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    rng = random.Random(seed)
    written = 0
    with running([root], {"tiny": tiny_ensemble}) as service:
        for _ in range(5):
            for _ in range(3):
                write(root, written, written)
                written += 1
            if written == 12:  # one that was judged long ago is rewritten
                write(root, 0, 99)
            process = start(root, service.url, url)
            time.sleep(rng.uniform(0.9, 2.0))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        process = start(root, service.url, url, "--once")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert written == STACKS
    check(root, url)


def test_a_watcher_that_is_asked_to_stop_ends_well(tiny_ensemble: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write(root, 0, 0)
    ledger = str(tmp_path / "ledger.sqlite")
    with running([root], {"tiny": tiny_ensemble}) as service:
        process = start(root, service.url, ledger)
        lines = root / "cryoray/s/events.jsonl"
        until = time.monotonic() + 90
        while not (lines.is_file() and "micrograph.judged" in lines.read_text()):
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said.decode()
    assert "session.closed" in lines.read_text()
    assert len(starfile.read(root / "cryoray/s/kept.star", always_dict=True)) == 2


@pytest.mark.faults
def test_a_session_on_a_full_disk_ends_in_a_sentence_and_goes_on_with_room(
    tiny_ensemble: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 32) as disk:
        root, ledger = disk / "data", disk / "ledger.sqlite"
        root.mkdir()
        Ledger(ledger).close()
        with running([root], {"tiny": tiny_ensemble}, ledger=str(ledger)) as service:
            for number in range(STACKS):
                write(root, number, number)
            process = start(root, service.url, str(ledger))
            lines = root / "cryoray/s/events.jsonl"
            until = time.monotonic() + 90
            while not (lines.is_file() and "micrograph.judged" in lines.read_text()):
                assert time.monotonic() < until
                time.sleep(0.01)
            with filled(disk):
                assert _sentence(process).startswith(f"{disk}/")
                assert str(ledger) in _sentence(start(root, service.url, str(ledger)))
                with service.client() as client:
                    assert len(client.judge(root / "mic_1.mrcs")) == IMAGES
                asked = f"{service.url}/v1/sessions/s/merge"
                said = httpx.post(asked, json={}, headers={"Authorization": f"Bearer {TOKEN}"})
                assert said.status_code == 507
                assert f"{ledger}: No space left on device; make room" in said.text
            # Events are lines to other programs, and one may have been cut short by the full disk.
            with lines.open("a") as file:
                file.write('{"id": "cut sh')
            process = start(root, service.url, str(ledger), "--once")
            _, told = process.communicate(timeout=60)
            assert process.returncode == 0, told.decode()
        check(root, str(ledger))


def _sentence(process: subprocess.Popen[bytes]) -> str:
    """What a watcher says that ends because a disk is full."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said.decode()
    (line,) = said.decode().splitlines()
    assert "No space left on device; make room and give the same command again" in line
    return line


def check(root: Path, url: str) -> None:
    """What the ledger, the stacks' own files, the merged files and the lines say is the same."""
    ledger = Ledger(url)
    rows = ledger.stacks("s", "judged")
    totals = ledger.totals("s")["particle/judged"]
    assert (len(rows), totals["rows"]) == (STACKS, STACKS * IMAGES)
    assert sum(totals[name] for name in FATES) == STACKS * IMAGES
    folder = root / "cryoray/s"
    judged = Counter(
        image
        for row in rows
        for image in pq.read_table(
            folder / "verdicts" / Path(row.path).relative_to(root) / "verdicts.parquet"
        )["image"].to_pylist()
    )
    merged = Counter(
        image
        for side in ("kept", "discarded", "review")
        for image in _images(folder / f"{side}.star")
    )
    assert set(judged.values()) == {1}
    assert judged == merged
    assert len(ledger.micrographs("s")) == STACKS
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    ids = Counter(line["id"] for line in lines)
    assert set(ids.values()) == {1}, "a line was written twice"
    told = Counter(line["data"]["stack"] for line in lines if line["event"] == "micrograph.judged")
    assert len(told) == STACKS
    assert set(told.values()) <= {1, 2}, "twice for the one that was rewritten"
    ledger.close()


def _images(star: Path) -> list[str]:
    table = starfile.read(star, always_dict=True)["particles"]
    return list(table["rlnImageName"]) if len(table) else []
