"""A session from beginning to end: real files, the real ledger, the service's own application."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import starfile

from cryoray.errors import InputError, SettingsError
from cryoray.formats.source import open_source
from cryoray.protocol.client import RefusedError
from cryoray.records import Event
from cryoray.session.schema import FATES
from cryoray.session.watcher import Watcher
from cryoray.settings import WatchSettings
from tests import examples
from tests.formats.files import write_cs_job
from tests.session.service import Service, running

pytestmark = pytest.mark.long

QUICK = {"poll": 0.05, "settle": 0.1, "rescan": 0.3, "merge_every": 0.0, "patience": 0.3}


@pytest.fixture(scope="module")
def service(tiny_ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    classes = tmp_path_factory.mktemp("ensembles") / "classes"
    examples.save_ensemble(classes, "class2d")
    with running([Path("/")], {"tiny": tiny_ensemble, "classes": classes}) as made:
        yield made


def extracted(
    root: Path, name: str = "mic_1", images: int = 20, *, dialect: str = "images", seed: int = 1
) -> Path:
    """A micrograph's stack and STAR file as RELION's extraction writes them."""
    stack = root / "Extract/job009/Movies" / f"{name}.mrcs"
    stack.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}@Extract/job009/Movies/{name}.mrcs" for i in range(1, images + 1)]
    star = stack.with_name(f"{name}_extract.star")
    if dialect == "optics":
        rows = [f"{one} MotionCorr/job002/{name}.mrc 1 9000 8800 4.5" for one in names]
        examples.write_star(star, rows)
    else:
        columns = ["rlnCoordinateX", "rlnImageName", "rlnMicrographName", "rlnOpticsGroup"]
        columns += ["rlnCtfMaxResolution", "rlnDefocusU", "rlnDefocusV"]
        head = [f"_{column} #{at}" for at, column in enumerate(columns, 1)]
        rows = [
            f"{10 * at} {one} MotionCorr/job002/{name}.mrc 1 4.5 9000 8800"
            for at, one in enumerate(names)
        ]
        text = ["", "# version 50001", "", "data_images", "", "loop_ ", *head, *rows, "", ""]
        star.write_text("\n".join(text))
    return examples.write_stack(stack, examples.particles(images, seed=seed))


class Session:
    """A watcher in a thread, and what it told."""

    def __init__(self, watcher: Watcher, events: list[Event]) -> None:
        self.watcher, self.events = watcher, events
        self.folder, self.ledger = watcher.places.folder, watcher.ledger
        self.failure: BaseException | None = None

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"waited for too long; {self.watcher.row_counts()}"
            assert self.failure is None, self.failure
            time.sleep(0.02)

    def judged(self, stacks: int) -> None:
        self.until(lambda: self.watcher.row_counts()["stacks"] == stacks)

    def names(self) -> Counter[str]:
        return Counter(one.name for one in self.events)


@contextmanager
def watching(root: Path, service: Service, **settings: Any) -> Iterator[Session]:
    events: list[Event] = []
    chosen = WatchSettings(**{**QUICK, **settings})
    watcher = Watcher(root, "s", chosen, service.client(), on_event=events.append)
    session, stop = Session(watcher, events), threading.Event()

    def run() -> None:
        try:
            watcher.run(stop)
        except BaseException as error:
            session.failure = error

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield session
    finally:
        stop.set()
        thread.join()
        watcher.close()
    if session.failure:
        raise session.failure


def once(root: Path, service: Service, **settings: Any) -> tuple[Watcher, list[Event]]:
    """Judge what is there."""
    events: list[Event] = []
    chosen = WatchSettings(**{**QUICK, **settings})
    watcher = Watcher(root, "s", chosen, service.client(), on_event=events.append)
    watcher.run(threading.Event(), once=True)
    watcher.client.close()  # the ledger is looked at later
    return watcher, events


def lines(watcher: Watcher, name: str = "") -> list[dict[str, Any]]:
    text = (watcher.places.folder / "events.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, text) if name in ("", one["event"])]


def images(star: Path) -> list[str]:
    """Names of images by an independent reader."""
    tables = starfile.read(star, always_dict=True)
    table = tables["particles"] if "particles" in tables else next(iter(tables.values()))
    return list(table["rlnImageName"]) if len(table) else []


@pytest.mark.parametrize("dialect", ["images", "optics"])
def test_each_stack_gets_verdicts_of_its_own_and_the_sides_are_merged(
    service: Service, root: Path, dialect: str
) -> None:
    for number in (1, 2):
        extracted(root, f"mic_{number}", 20 + number, dialect=dialect, seed=number)
    watcher, events = once(root, service)
    row_counts = watcher.row_counts()
    assert (row_counts["stacks"], row_counts["rows"], row_counts["pending"]) == (2, 43, 0)
    assert sum(int(str(row_counts[name])) for name in FATES) == 43

    mine = watcher.places.folder / "verdicts/Extract/job009/Movies/mic_1.mrcs"
    table = pq.read_table(mine / "verdicts.parquet")
    names = open_source(root / "Extract/job009/Movies/mic_1_extract.star").images.tolist()
    assert table["image"].to_pylist() == names
    merged = {
        side: images(watcher.places.folder / f"{side}.star")
        for side in ("kept", "discarded", "review")
    }
    assert sum(map(len, merged.values())) == 43
    assert len(merged["kept"]) == row_counts["kept"]
    tables = starfile.read(watcher.places.folder / "kept.star", always_dict=True)
    # RELION's extraction writes no optics table, and nothing else here describes its group.
    assert list(tables) == (["optics"] if dialect == "optics" else []) + ["particles"]
    told = lines(watcher, "sides.merged")[-1]
    lacking = "rlnVoltage, rlnSphericalAberration"
    lacking += ", rlnImagePixelSize" if dialect == "images" else ""
    assert told["data"]["unknown"] == [f"{lacking} of kept.star"]
    if dialect == "optics":
        assert tables["optics"]["rlnImagePixelSize"].tolist() == [2.5]
    assert [one.name for one in events].count("micrograph.judged") == 2
    first = min(lines(watcher, "micrograph.judged"), key=lambda one: str(one["data"]["stack"]))
    assert first["data"]["micrograph"] == "MotionCorr/job002/mic_1.mrc"
    assert first["data"]["ctf_resolution"] == pytest.approx(4.5)
    assert first["data"]["defocus"] == pytest.approx(0.89)
    watcher.close()


def test_what_is_said_live_is_what_classify_would_say(service: Service, root: Path) -> None:
    """Scores of the session equal those of one request for everything."""
    extracted(root, images=30, dialect="optics")
    watcher, _ = once(root, service)
    star = root / "Extract/job009/Movies/mic_1_extract.star"
    with service.client() as client:
        answer = client.judge(star)
    table = pq.read_table(watcher.context.place(star.with_name("mic_1.mrcs")) / "verdicts.parquet")
    assert table["score"].to_numpy() == pytest.approx(answer.score.tolist())
    watcher.close()


def test_a_stack_still_being_written_is_not_taken(service: Service, root: Path) -> None:
    stack = extracted(root, images=20)
    whole = stack.read_bytes()
    stack.write_bytes(whole[: len(whole) // 2])
    calls = service.judging.calls
    with watching(root, service, settle=0.5, patience=30.0) as session:
        session.until(lambda: len(session.ledger.stacks("s", "pending")) == 1)
        time.sleep(0.6)
        assert session.watcher.row_counts()["stacks"] == 0
        with stack.open("ab") as file:
            file.write(whole[len(whole) // 2 :])
        session.until(lambda: session.watcher.row_counts()["rows"] == 20)
        time.sleep(1.5)  # the look that finds it grown, and the settle time
        assert session.names()["stack.rejected"] == 0
        assert session.names()["micrograph.judged"] == 1
        assert service.judging.calls == calls + 1, "once, as the whole stack that it is"


def test_what_is_rewritten_is_judged_again_and_what_vanishes_no_longer_counts(
    service: Service, root: Path
) -> None:
    stack = extracted(root, images=20)
    other = extracted(root, "mic_2", 10)
    with watching(root, service) as session:
        session.judged(2)
        extracted(root, images=25, seed=7)
        session.until(lambda: session.watcher.row_counts()["rows"] == 35)
        for path in (other, other.with_name("mic_2_extract.star")):
            path.unlink()
        session.until(lambda: session.watcher.row_counts()["rows"] == 25)
        session.until(lambda: session.names()["stack.vanished"] == 1)
        assert session.names()["micrograph.judged"] == 3
    total = sum(
        len(images(session.folder / f"{side}.star")) for side in ("kept", "discarded", "review")
    )
    assert total == 25
    assert stack.exists()


def test_a_stack_that_cannot_be_read_is_set_aside_and_the_session_goes_on(
    service: Service, root: Path
) -> None:
    damaged = examples.particles(20)
    damaged[:5, 0, 0] = np.nan
    examples.write_stack(root / "half.mrcs", damaged)
    (root / "none.mrcs").write_bytes(b"no stack at all")
    extracted(root)
    watcher, _ = once(root, service)
    aside = {Path(row.path).name: row.reason for row in watcher.ledger.stacks("s", "rejected")}
    assert set(aside) == {"half.mrcs", "none.mrcs"}
    assert "5 of 20 rows could not be read (2 allowed)" in aside["half.mrcs"]
    assert "is not an MRC file" in aside["none.mrcs"]
    assert watcher.row_counts()["stacks"] == 1
    assert {one["data"]["reason"] for one in lines(watcher, "stack.rejected")} == set(
        aside.values()
    )
    listed = pq.read_table(watcher.context.place(root / "half.mrcs") / "quarantine.parquet")
    assert len(listed) == 5
    watcher.close()


def test_a_service_that_fails_is_asked_again_until_the_verdicts_are_there(
    tiny_ensemble: Path, root: Path
) -> None:
    extracted(root)
    with running([root], {"tiny": tiny_ensemble}) as service, watching(root, service) as session:
        session.judged(1)
        service.judging.broken = True
        extracted(root, "mic_2", 12)
        session.until(lambda: session.names()["service.away"] == 1)
        service.stop()
        time.sleep(0.5)
        service.judging.broken = False
        service.start()
        session.judged(2)
        session.until(lambda: session.names()["service.back"] == 1)
        assert session.watcher.row_counts()["rows"] == 32


def test_a_token_that_is_wrong_is_said_at_once(service: Service, root: Path) -> None:
    watcher = Watcher(root, "s", WatchSettings(**QUICK), service.client("wrong"))
    with pytest.raises(RefusedError, match="token"):
        watcher.run(threading.Event(), once=True)
    watcher.close()


def test_a_session_goes_on_after_days_without_judging_anything_twice(
    tiny_ensemble: Path, root: Path
) -> None:
    extracted(root)
    with running([root], {"tiny": tiny_ensemble}) as service:
        once(root, service)[0].close()
        calls = service.judging.calls
        extracted(root, "mic_2", 15)
        watcher, events = once(root, service)
        assert service.judging.calls == calls + 1
        assert watcher.row_counts()["rows"] == 35
        assert [one.name for one in events].count("micrograph.judged") == 1
        judged = [one["id"] for one in lines(watcher, "micrograph.judged")]
        assert len(judged) == len(set(judged)) == 2
        watcher.close()


def test_verdicts_on_disk_that_the_ledger_lost_are_taken_not_made_again(
    tiny_ensemble: Path, root: Path
) -> None:
    extracted(root)
    with running([root], {"tiny": tiny_ensemble}) as service:
        watcher, _ = once(root, service)
        watcher.close()
        before = watcher.row_counts
        for file in (root / "cryoray").glob("ledger.sqlite*"):
            file.unlink()
        calls = service.judging.calls
        watcher, _ = once(root, service)
        assert service.judging.calls == calls
        assert watcher.row_counts()["rows"] == 20
        watcher.close()
        assert before is not None


def test_verdicts_that_are_not_whole_are_made_again(tiny_ensemble: Path, root: Path) -> None:
    stack = extracted(root)
    with running([root], {"tiny": tiny_ensemble}) as service:
        watcher, _ = once(root, service)
        watcher.close()
        folder = watcher.context.place(stack)
        for file in (root / "cryoray").glob("ledger.sqlite*"):
            file.unlink()
        (folder / "verdicts.parquet").write_bytes(b"PAR1")
        watcher, _ = once(root, service)
        assert len(pq.read_table(folder / "verdicts.parquet")) == 20
        assert watcher.row_counts()["rows"] == 20
        watcher.close()


def test_a_star_file_whose_stacks_are_watched_is_not_judged_beside_them(
    service: Service, root: Path
) -> None:
    extracted(root)
    extracted(root, "mic_2", 10)
    rows = [
        f"{i:06d}@Extract/job009/Movies/{name}.mrcs {name}.mrc 1 9000 8800 4"
        for name, n in (("mic_1", 20), ("mic_2", 10))
        for i in range(1, n + 1)
    ]
    examples.write_star(root / "Extract/job009/particles.star", rows)
    watcher, _ = once(root, service)
    assert watcher.row_counts()["rows"] == 30
    assert {Path(row.path).suffix for row in watcher.ledger.stacks("s")} == {".mrcs"}
    watcher.close()


def test_a_star_file_of_stacks_elsewhere_is_judged_itself(
    service: Service, root: Path, tmp_path: Path
) -> None:
    elsewhere = examples.write_project(tmp_path / "elsewhere", (8, 9))
    text = elsewhere.read_text().replace("@Extract", f"@{tmp_path}/elsewhere/Extract")
    (root / "import.star").write_text(text)
    watcher, _ = once(root, service, roots=(tmp_path / "elsewhere",))
    (row,) = watcher.ledger.stacks("s", "judged")
    assert (Path(row.path).name, row.rows) == ("import.star", 17)
    assert len(watcher.ledger.micrographs("s")) == 2
    watcher.close()


def test_a_stack_elsewhere_that_a_link_and_a_star_file_name_is_judged_once(
    service: Service, root: Path, tmp_path: Path
) -> None:
    stack = examples.write_stack(tmp_path / "elsewhere/b.mrcs", examples.particles(6))
    for link in (root / "b.mrcs", root / "again/b.mrcs"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(stack)
    rows = [f"{i:06d}@{stack} mic.mrc 1 9000 8800 4.5" for i in range(1, 7)]
    examples.write_star(root / "joined.star", rows)
    watcher, _ = once(root, service, roots=(stack.parent,))
    (row,) = watcher.ledger.stacks("s")
    assert (Path(row.path), row.rows) == (root / "b.mrcs", 6)
    watcher.close()


def test_a_star_file_beside_a_stack_that_is_not_used_is_named(service: Service, root: Path) -> None:
    stack = examples.write_stack(root / "a.mrcs", examples.particles(5))
    rows = [f"{i:06d}@other.mrcs mic.mrc 1 9000 8800 4.5" for i in range(1, 6)]
    examples.write_star(root / "a_extract.star", rows)
    watcher, _ = once(root, service)
    (row,) = watcher.ledger.stacks("s", "judged")
    assert (row.path, row.described_by) == (str(stack), None)
    (told,) = lines(watcher, "companion.unused")
    assert told["data"]["file"] == str(root / "a_extract.star")
    assert "names other stacks" in told["data"]["because"]
    watcher.close()


def test_bare_stacks_take_their_rows_from_a_shared_star_file(service: Service, root: Path) -> None:
    star = examples.write_project(root, (20, 15))
    watcher, _ = once(root, service)
    assert {row.described_by for row in watcher.ledger.stacks("s", "judged")} == {str(star)}
    merged = [
        name
        for side in ("kept", "discarded", "review")
        for name in images(watcher.places.folder / f"{side}.star")
    ]
    assert sorted(merged) == sorted(open_source(star).images)
    tables = starfile.read(watcher.places.folder / "kept.star", always_dict=True)
    assert "rlnDefocusU" in tables["particles"].columns
    watcher.close()


def test_rows_that_join_a_shared_star_file_do_not_have_old_stacks_judged_again(
    tiny_ensemble: Path, root: Path
) -> None:
    star = examples.write_project(root, (20, 15))
    with running([root], {"tiny": tiny_ensemble}) as service:
        once(root, service)[0].close()
        calls = service.judging.calls
        name = "Extract/job001/mic_9.mrcs"
        examples.write_stack(root / name, examples.particles(5))
        with star.open("a") as file:
            file.writelines(f"{i:06d}@{name} mic_9.mrc 1 9000 8800 4\n" for i in range(1, 6))
        watcher, _ = once(root, service)
        assert service.judging.calls == calls + 1
        assert watcher.row_counts()["rows"] == 40
        watcher.close()


def test_the_last_iteration_of_a_class_job_is_judged_and_its_averages_are_no_particles(
    service: Service, root: Path
) -> None:
    job = root / "Class2D/job010"
    job.mkdir(parents=True)

    def iteration(number: int) -> None:
        name = f"run_it{number:03d}"
        examples.write_stack(job / f"{name}_classes.mrcs", examples.particles(6, seed=number))
        rows = "\n".join(f"{i:06d}@{job}/{name}_classes.mrcs 0.1 10" for i in range(1, 7))
        (job / f"{name}_model.star").write_text(
            "data_model_classes\n\nloop_\n_rlnReferenceImage #1\n_rlnClassDistribution #2\n"
            f"_rlnEstimatedResolution #3\n{rows}\n"
        )

    iteration(24)
    with watching(root, service) as session:
        session.judged(1)
        iteration(25)
        session.until(lambda: session.names()["classes.judged"] == 2)
        session.until(lambda: len(session.ledger.stacks("s", "vanished")) == 1)
        (row,) = session.ledger.stacks("s", "judged")
        assert (Path(row.path).name, row.kind, row.rows) == ("run_it025_model.star", "class2d", 6)
    assert images(session.folder / "kept.star") == []


def test_an_override_moves_the_image_to_the_other_side_and_becomes_a_selection(
    service: Service, root: Path
) -> None:
    stack = extracted(root)
    with watching(root, service, audit=0) as session:
        session.judged(1)
        (row,) = session.ledger.stacks("s", "judged")
        table = pq.read_table(session.watcher.context.place(stack) / "verdicts.parquet")
        image, before = table["image"][3].as_py(), table["verdict"][3].as_py()
        keep = before != "keep"
        side, other = ("kept", "discarded") if keep else ("discarded", "kept")
        said = {"image": image, "before": before, "score": 0.1, "digest": row.digest, "who": "Ada"}
        session.ledger.override("s", row.id, 3, keep, **said)
        session.ledger.want_merge("s")
        session.until(lambda: image in images(session.folder / f"{side}.star"))
        assert image not in images(session.folder / f"{other}.star")
        assert image not in images(session.folder / "review.star")
        assert not (session.folder / "labels.csv").exists(), "not released"
        session.ledger.set_trainable("s", trainable=True)
    from cryoray.formats.selection import read_selection

    source = open_source(stack.with_name("mic_1_extract.star"))
    for name in ("overrides.csv", "labels.csv"):
        labels = read_selection(session.folder / name, source)
        assert (labels == int(keep)).nonzero()[0].tolist() == [source.images.tolist().index(image)]
        assert (labels >= 0).sum() == 1


def test_squares_and_holes_are_summed_as_micrographs_come(service: Service, root: Path) -> None:
    folder = root / "GridSquare_77/Data"
    for hole in (1, 2):
        name = f"FoilHole_{hole}_Data_5_6_20230430_084907"
        examples.write_stack(root / "x.mrcs", examples.particles(5 * hole)).rename(
            root / f"{name}.mrcs"
        )
        rows = [
            f"{i:06d}@{name}.mrcs GridSquare_77/Data/{name}.mrc 1 9000 8800 4"
            for i in range(1, 5 * hole + 1)
        ]
        examples.write_star(root / f"{name}.star", rows)
    watcher, _ = once(root, service, max_concurrent=1)
    last = lines(watcher, "grid_square.judged")[-1]["data"]
    assert (last["grid_square"], last["micrographs"]) == ("77", 2)
    assert last["kept"] + last["discarded"] + last["review"] == 15
    assert last["ctf_resolution"] == pytest.approx(4.0)
    holes = {row.hole for row in watcher.ledger.micrographs("s")}
    assert holes == {"1", "2"}
    assert not folder.exists()
    watcher.close()


def test_a_webhook_gets_each_event_once_it_listens(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoray.session.event_log.FIRST_WAIT", 0.05)
    got: list[dict[str, Any]] = []
    fails = [2]

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if fails[0]:
                fails[0] -= 1
                self.send_response(503)
            else:
                got.append(json.loads(body))
                self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    extracted(root)
    with watching(root, service, webhook=f"http://127.0.0.1:{server.server_port}") as session:
        session.until(lambda: any(one["event"] == "micrograph.judged" for one in got))
    server.shutdown()
    server.server_close()
    names = [one["event"] for one in got]
    assert names[0] == "session.opened"
    assert names[-1] == "session.closed"
    assert len({one["id"] for one in got}) == len(got)
    assert set(got[0]) == {"id", "event", "session", "time", "data"}


def test_a_drift_is_told(service: Service, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm reaches the lines; what it is about is test_drift's."""
    for number in range(12):
        extracted(root, f"mic_{number}", 6, seed=number)
    monkeypatch.setattr("cryoray.session.drift.WARM_UP", 2)
    for path in root.rglob("mic_1?_extract.star"):
        path.write_text(path.read_text().replace(" 4.5 9000", " 30.0 9000"))
    for path in root.rglob("mic_[6-9]_extract.star"):
        path.write_text(path.read_text().replace(" 4.5 9000", " 30.0 9000"))
    watcher, _ = once(root, service, micrographs_between_false_alarms=1.5, max_concurrent=1)
    alarms = [one["data"] for one in lines(watcher, "drift.alarm")]
    assert any(one["channel"] == "CTF resolution" and "Å" in one["reason"] for one in alarms)
    watcher.close()


def test_two_watchers_of_one_session_are_one_too_many(service: Service, root: Path) -> None:
    with watching(root, service) as session:
        session.until(lambda: session.names()["session.opened"] == 1)
        second = Watcher(root, "s", WatchSettings(**QUICK), service.client())
        with pytest.raises(SettingsError, match="another process"):
            second.run(threading.Event())
        second.close()


def test_the_tokens_file_is_for_its_owner_alone(service: Service, root: Path) -> None:
    watcher = Watcher(root, "s", WatchSettings(**QUICK), service.client())
    assert watcher.token_file.stat().st_mode & 0o777 == 0o600
    assert watcher.ledger.scope(watcher.token_file.read_text().strip()) == "s"
    watcher.close()


def test_who_deletes_the_tokens_file_gets_another_token(service: Service, root: Path) -> None:
    watcher = Watcher(root, "s", WatchSettings(**QUICK), service.client())
    old = watcher.token_file.read_text().strip()
    watcher.token_file.unlink()
    watcher.close()
    watcher = Watcher(root, "s", WatchSettings(**QUICK), service.client())
    new = watcher.token_file.read_text().strip()
    assert (watcher.ledger.scope(old), watcher.ledger.scope(new)) == (None, "s")
    watcher.close()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 81])
def test_a_session_must_be_a_name(service: Service, root: Path, name: str) -> None:
    with service.client() as client, pytest.raises(SettingsError, match="cannot be named"):
        Watcher(root, name, WatchSettings(**QUICK), client)


def test_a_folder_must_be_there(service: Service, root: Path) -> None:
    with service.client() as client, pytest.raises(InputError, match="no such folder"):
        Watcher(root / "absent", "s", WatchSettings(**QUICK), client)


@pytest.mark.real
def test_a_real_extraction_of_relion_is_judged_with_its_metadata(
    service: Service, real_data: Path, root: Path
) -> None:
    job = real_data / "relion5-project/Extract/job009"
    (root / "Extract").mkdir()
    (root / "Extract/job009").symlink_to(job)
    watcher, _ = once(root, service, roots=(job,))
    rows = watcher.ledger.stacks("s", "judged")
    assert len(rows) == len(list(job.glob("Movies/*.mrcs")))
    assert all(row.described_by.endswith("_extract.star") for row in rows)
    merged = [
        name
        for side in ("kept", "discarded", "review")
        for name in images(watcher.places.folder / f"{side}.star")
    ]
    assert sorted(merged) == sorted(open_source(job / "particles.star").images)
    optics = starfile.read(watcher.places.folder / "kept.star", always_dict=True)["optics"]
    assert float(optics["rlnVoltage"].iloc[0]) == 200.0
    assert all(row.ctf_resolution for row in watcher.ledger.micrographs("s"))
    watcher.close()


def test_a_cryosparc_table_is_judged_and_merged_with_the_other_stacks(
    service: Service, root: Path
) -> None:
    write_cs_job(root, 6)
    examples.write_stack(root / "J19/extract/a.mrc", examples.particles(6, box=8))
    extracted(root, "mic_1", 20)
    watcher, _ = once(root, service)
    row_counts = watcher.row_counts()
    assert row_counts["stacks"] == 2
    assert sum(int(str(row_counts[name])) for name in FATES) == 26
    merged = [
        image
        for side in FATES[:3]
        for star in watcher.places.folder.glob(f"{side}*.star")
        for image in images(star)
    ]
    assert len(merged) == len(set(merged)) == 26
    tables = sorted(path.name for path in watcher.places.folder.rglob("kept.cs"))
    assert tables == ["kept.cs"]
