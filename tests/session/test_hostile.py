"""What neighbours, networks and names do to a session: it goes on, and says what it met."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from cryoray.errors import SettingsError
from cryoray.formats.source import open_source
from cryoray.records import Event
from cryoray.session import database
from cryoray.session.ledger import Ledger
from cryoray.session.schema import FATES
from cryoray.session.settling import Scanner
from cryoray.session.watcher import Watcher
from cryoray.settings import WatchSettings
from tests import examples
from tests.session.service import Service, running
from tests.session.test_watcher import images, lines, once, watching

pytestmark = pytest.mark.long

HOSTILE = (b"line\nbreak.mrcs", b"caf\xe9.mrcs", b"both'\".mrcs", b"\x1b[2Jclear.mrcs")
ODD = ("a b.mrcs", "it's.mrcs", 'say "hi".mrcs', "=1+1.mrcs", "Zürich.mrcs")


@pytest.fixture(scope="module")
def service(tiny_ensemble: Path) -> Iterator[Service]:
    with running([Path("/")], {"tiny": tiny_ensemble}) as made:
        yield made


def stack(root: Path, name: str, seed: int = 0) -> Path:
    return examples.write_stack(root / name, examples.particles(6, seed=seed))


def counted(watcher: Watcher) -> int:
    counts = watcher.ledger.totals("s").get("particle/judged", {})
    return sum(counts.get(name, 0) for name in FATES)


def merged(watcher: Watcher) -> list[str]:
    return [
        image
        for side in ("kept", "discarded", "review")
        for star in watcher.places.folder.glob(f"{side}*.star")
        for image in images(star)
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_no_file_can_hold_is_rejected_and_the_rest_goes_on(
    service: Service, root: Path, name: bytes
) -> None:
    stack(root, os.fsdecode(name))
    stack(root, "good.mrcs", 1)
    for _ in range(2):  # a second time from the ledger
        watcher, events = once(root, service)
        assert (watcher.row_counts()["stacks"], watcher.row_counts()["rejected"]) == (1, 1)
        assert counted(watcher) == len(merged(watcher)) == 6
        watcher.close()
        assert not [one for one in events if one.name == "stack.vanished"]
    (told,) = lines(watcher, "stack.rejected")
    assert "its name" in told["data"]["reason"]
    assert told["data"]["stack"].isprintable()


def test_odd_names_are_judged_and_read_back_whole(service: Service, root: Path) -> None:
    for seed, name in enumerate(ODD):
        stack(root, name, seed)
    watcher, _ = once(root, service)
    assert counted(watcher) == 6 * len(ODD)
    # Not by starfile, which takes one kind of quotes for the other.
    merged = [
        open_source(watcher.places.folder / f"{side}.star")
        for side in ("kept", "discarded", "review")
        if images(watcher.places.folder / f"{side}.star")
    ]
    assert sum(map(len, merged)) == 6 * len(ODD)
    assert {stack.name for one in merged for stack in one.stacks} == set(ODD)
    watcher.close()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another program that holds the ledger's lock."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


def test_a_locked_ledger_is_waited_for_and_nothing_is_lost(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_MS", 50)
    stack(root, "first.mrcs")
    with watching(root, service) as session:
        session.judged(1)
        with locked(root / "cryoray/ledger.sqlite"):
            stack(root, "second.mrcs", 1)
            (root / "first.mrcs").unlink()
            session.until(lambda: session.names()["ledger.away"] > 0)
            time.sleep(1)
        session.until(lambda: session.names()["ledger.back"] > 0)
        session.until(lambda: session.names()["stack.vanished"] == 1)
        session.judged(1)
        watcher = session.watcher
    assert counted_file(root) == 6
    written = [one["id"] for one in lines(watcher)]
    assert len(written) == len(set(written)), "a line was written twice"
    assert {Path(image.partition("@")[2]).name for image in merged(watcher)} == {"second.mrcs"}


def counted_file(root: Path) -> int:
    ledger = Ledger(root / "cryoray/ledger.sqlite")
    counts = ledger.totals("s")["particle/judged"]
    ledger.close()
    return sum(counts[name] for name in FATES)


def test_what_vanished_while_nobody_watched_no_longer_counts(service: Service, root: Path) -> None:
    for number in range(3):
        stack(root, f"{number}.mrcs", number)
    once(root, service)[0].close()
    (root / "1.mrcs").unlink()
    watcher, events = once(root, service)
    assert [one.name for one in events].count("stack.vanished") == 1
    assert counted(watcher) == len(merged(watcher)) == 12
    watcher.close()


def test_a_disk_that_is_away_at_the_start_takes_nothing_with_it(
    service: Service, root: Path
) -> None:
    for number in range(12):
        stack(root, f"{number}.mrcs", number)
    once(root, service)[0].close()
    away = root.parent / "away"
    away.mkdir()
    for file in root.glob("*.mrcs"):
        file.rename(away / file.name)
    watcher, events = once(root, service)
    assert "stack.vanished" not in [one.name for one in events]
    assert counted(watcher) == 72
    watcher.close()


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_of_another_user_hides_its_own_files_and_no_others() -> None:
    now = [0.0]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("mine", "lost+found"):
            (root / name).mkdir()
            (root / name / "a.mrcs").write_text("x")
        scanner = Scanner(root, settle=1, rescan=0, clock=lambda: now[0])
        with nobody():
            scanner.look()
            now[0] = 2.0
            assert len(scanner.look().settled) == 2
        (root / "lost+found").chmod(0)
        try:
            with nobody():
                for now[0] in (10.0, 20.0):
                    look = scanner.look()
                    assert (look.away, look.vanished) == (None, ())
                    assert look.unreadable == {str(root / "lost+found"): "Permission denied"}
                    assert scanner.is_hidden(str(root / "lost+found/a.mrcs"))
                assert scanner.get(str(root / "mine/a.mrcs"))
        finally:
            (root / "lost+found").chmod(0o755)


def test_a_session_reached_by_a_link_is_the_same_session(service: Service, root: Path) -> None:
    stack(root, "a.mrcs")
    rows = [f"{i:06d}@{root}/a.mrcs mic.mrc 1 9000 8800 4.5" for i in range(1, 7)]
    examples.write_star(root / "joined.star", rows)
    once(root, service)[0].close()
    link = root.parent / "link"
    link.symlink_to(root)
    (root / "again.mrcs").symlink_to(root / "a.mrcs")
    watcher, events = once(link, service)
    assert counted(watcher) == len(merged(watcher)) == 6
    assert "stack.vanished" not in [one.name for one in events]
    watcher.close()


def test_links_to_a_neighbours_files_tell_neither_their_names_nor_what_is_in_them(
    service: Service, root: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "neighbour"
    stack(theirs, "secret/grid7.mrcs")
    unlike = examples.write_stack(theirs / "wide.mrcs", examples.particles(2, box=48))
    rows = [f"{i:06d}@{theirs}/secret/grid7.mrcs mic.mrc 1 9000 8800 4.5" for i in range(1, 7)]
    examples.write_star(theirs / "secret_particles.star", rows)
    mine = stack(root, "a.mrcs")
    (root / "folder").symlink_to(theirs)
    (root / "b.mrcs").symlink_to(unlike)
    (root / "a_extract.star").symlink_to(theirs / "secret_particles.star")
    watcher, _ = once(root, service)
    (judged,) = watcher.ledger.stacks("s", "judged")
    assert judged.path == str(mine)
    written = (watcher.places.folder / "events.jsonl").read_text()
    for private in ("grid7", "secret", "48 ×"):
        assert private not in written.replace(str(theirs), ""), private
    (told,) = lines(watcher, "folder.unreadable")
    assert told["data"]["folder"] == str(root / "folder")
    assert "--root" in told["data"]["reason"]
    watcher.close()


def test_a_webhook_that_drips_does_not_hold_the_end(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoray.session.event_log._POST_SECONDS", 0.5)
    stack(root, "a.mrcs")
    done = threading.Event()

    def drip(server: socket.socket) -> None:
        held = []
        while not done.is_set():
            with suppress(TimeoutError):
                held.append(server.accept()[0])
            for one in held:
                try:
                    one.send(b"H")
                except OSError:
                    continue
        for one in held:
            one.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        ended = threading.Event()
        made: list[Watcher] = []

        def watch() -> None:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/"
            made.append(once(root, service, webhook=url)[0])
            ended.set()

        watch_thread = threading.Thread(target=watch, daemon=True)
        watch_thread.start()
        assert ended.wait(60)
        done.set()
        thread.join()
    assert counted(made[0]) == 6
    made[0].close()


def test_what_was_decided_is_for_its_owner_alone(service: Service, root: Path) -> None:
    stack(root, "a.mrcs")
    old = os.umask(0o022)
    try:
        watcher, _ = once(root, service)
        watcher.close()
    finally:
        os.umask(old)
    assert mode(watcher.places.folder) == 0o700
    verdicts = [file for file in (watcher.places.folder / "verdicts").rglob("*") if file.is_file()]
    assert len(verdicts) > 5
    files = [*verdicts, *(root / "cryoray").glob("ledger.sqlite*")]
    assert {file.name: oct(mode(file)) for file in files if mode(file) != 0o600} == {}
    watcher.places.folder.chmod(0o750)
    once(root, service)[0].close()
    assert mode(watcher.places.folder) == 0o750, "who opens it knows why"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_text_that_the_ledger_cannot_hold_rejects_its_stack(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PostgreSQL does a NUL. SQLite takes any text, so that it is made to refuse one here."""
    events: list[Event] = []
    stack(root, "a.mrcs")
    rows = [f"{i:06d}@a.mrcs bad.mrc 1 9000 8800 4.5" for i in range(1, 7)]
    examples.write_star(root / "a_extract.star", rows)
    stack(root, "b.mrcs", 1)
    watcher = Watcher(root, "s", WatchSettings(**SLOW), service.client(), on_event=events.append)
    commit = watcher.ledger.commit

    def refusing(session: str, key: str, outcome: Any, *more: Any) -> bool:
        if any(one.name == "bad.mrc" for one in outcome.micrographs):
            raise database.UnstorableError("has text that the ledger cannot hold: NUL")
        return commit(session, key, outcome, *more)

    monkeypatch.setattr(watcher.ledger, "commit", refusing)
    watcher.run(threading.Event(), once=True)
    assert (watcher.row_counts()["stacks"], watcher.row_counts()["rejected"]) == (1, 1)
    watcher.close()


SLOW: dict[str, Any] = {
    "poll": 0.05,
    "settle": 0.1,
    "rescan": 0.3,
    "merge_every": 0.0,
    "patience": 0.3,
}


@pytest.mark.parametrize("name", [".lock", "events.jsonl"])
def test_a_link_that_waits_in_a_session_s_folder_is_not_followed(
    service: Service, root: Path, tmp_path: Path, name: str
) -> None:
    """Before, whoever may write the watched folder could have a file of the watcher's user emptied."""
    stack(root, "good.mrcs")
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    folder = root / "cryoray/s"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(precious)
    with pytest.raises(SettingsError, match="is a link"):
        once(root, service)
    assert precious.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_session_s_folder_that_is_somebody_else_s_is_refused(
    service: Service, root: Path
) -> None:
    folder = root / "cryoray/s"
    folder.mkdir(parents=True)
    os.chown(folder, 65534, -1)
    with pytest.raises(SettingsError, match="somebody else's"):
        once(root, service)
