"""Who may ask, what is refused and how, and that every row is answered: the HTTP application without Ray."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from cryoray.errors import SettingsError
from cryoray.formats.source import open_source
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import Embedded
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.protocol.messages import JUDGE, STACK_TYPE, JudgeAnswer
from cryoray.records import VERDICTS, RowRange
from cryoray.serving.application import create
from cryoray.serving.counts import Counts
from cryoray.serving.judging import JudgedRange, JudgesFailedError, Work, judge_timed
from cryoray.serving.lineup import Lineup, Served, attempt
from cryoray.serving.shadow import Comparison
from cryoray.settings import ServeSettings
from cryoray.web.server import config
from tests.examples import particles, write_project, write_stack

pytestmark = pytest.mark.long

TOKEN = "a-token-for-tests"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}


class InProcess:
    """Prepares and judges here and now; waits at the gate first."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.ensembles = {ensemble.digest: ensemble}
        self.gate, self.shadow_gate = threading.Event(), threading.Event()
        self.reset()

    def reset(self) -> None:
        self.gate.set()
        self.shadow_gate.set()
        self.waiting, self.loses_rows = threading.Semaphore(0), False
        self.breaks: set[str] = set()

    async def judge(self, work: Work) -> list[JudgedRange]:
        assert work.profile is None
        self.waiting.release()
        while not self.gate.is_set():
            await asyncio.sleep(0.005)
        if work.served.digest in self.breaks:
            raise JudgesFailedError("The judges of tiny failed, try again: they died.")
        judged = self.together(work.served, work.ranges)
        return judged[1:] if self.loses_rows else judged

    async def embed(self, work: Work) -> list[Embedded]:
        raise AssertionError("nobody asks for a profile")

    async def beside(self, work: Work) -> list[JudgedRange]:
        while not self.shadow_gate.is_set():
            await asyncio.sleep(0.005)
        if work.served.digest in self.breaks:
            raise RuntimeError("the shadow broke")
        return self.together(work.served, work.ranges)

    def together(self, served: Served, ranges: Sequence[RowRange]) -> list[JudgedRange]:
        ensemble = self.ensembles.setdefault(served.digest, Ensemble.load(served.path))
        return judge_timed(ensemble, [prepare_range(r, served.preparation) for r in ranges])

    async def ready(self) -> bool:
        return self.gate.is_set()

    async def attend(self) -> None:
        pass

    async def hold(self, served: Served) -> None:
        self.ensembles.setdefault(served.digest, Ensemble.load(served.path))


def application(
    judging: InProcess,
    *ensembles: Served,
    root: Path = Path("/nowhere"),
    shadow: Served | None = None,
    **settings: Any,
) -> FastAPI:
    """The application with its judging in this process, and what it promotes tried here too."""
    settings = {"token": TOKEN, "batch": 16, "poll": 0.02, **settings}

    async def here(name: str, path: Path) -> Served:
        return await asyncio.to_thread(attempt, name, path)

    served = {one.name: one for one in (*ensembles, *([shadow] if shadow else ()))}
    made = ServeSettings(**settings)
    lineup = Lineup(served, root, probation=made.probation, attempt=here, hold=judging.hold)
    counts = Counts(made.batch)
    comparison = Comparison(shadow.name if shadow else None, lineup, judging.beside, counts)
    return create(made, lineup, judging, counts, comparison)


@contextmanager
def over_http(app: Any, send_buffer: int | None = None, **how: Any) -> Iterator[httpx.Client]:
    """A client of the application on a real server, which has so many bytes for what is not read yet."""
    server = uvicorn.Server(config(app, port=0, **{"log_level": "critical", **how}))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    listening = server.servers[0].sockets[0]
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listening.getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def judging(tiny_ensemble: Path) -> InProcess:
    return InProcess(Ensemble.load(tiny_ensemble))


@pytest.fixture(autouse=True)
def _fresh(judging: InProcess) -> None:
    judging.reset()


@pytest.fixture(scope="module")
def served(judging: InProcess, tiny_ensemble: Path) -> Served:
    ensemble = judging.ensemble
    return Served.of("tiny", ensemble, tiny_ensemble)


@pytest.fixture(scope="module")
def service(judging: InProcess, served: Served, project: Path) -> Iterator[httpx.Client]:
    app = application(
        judging,
        served,
        replace(served, name="other"),
        roots=(project.parent,),
        max_rows=170,
        max_upload_mib=1,
        max_queued=2,
    )
    with over_http(app) as client:
        yield client


def test_every_row_asked_about_is_answered_in_order(
    service: httpx.Client, project: Path, judging: InProcess, served: Served
) -> None:
    response = service.post(
        JUDGE, json={"source": str(project), "rows": [10, 170]}, headers=ALLOWED
    )
    assert response.status_code == 200
    answer = JudgeAnswer.model_validate_json(response.content)
    assert [one.row for one in answer.verdicts] == list(range(10, 170))
    source = open_source(project)
    assert [one.image for one in answer.verdicts] == source.images[10:170].tolist()
    assert answer.ensemble == judging.ensemble.digest

    whole = plan(source, served.preparation, 64)
    (judged,) = judge_timed(judging.ensemble, [prepare_range(whole.ranges[0], served.preparation)])
    by_row = {one.row: one for one in answer.verdicts}
    both = [
        (i, by_row[row]) for i, row in enumerate(judged.verdicts.rows.tolist()) if row in by_row
    ]
    assert len(both) > 40
    for i, one in both:
        assert one.score == judged.verdicts.score[i]
        assert (one.d3 is None) == np.isnan(judged.verdicts.d3[i])
        assert one.verdict == judged.verdicts.verdict[i]
    assert {one.d3 is None for one in answer.verdicts} == {True, False}


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN],
)
@pytest.mark.parametrize("path", [JUDGE, "/v1", "/v1/sessions"])
def test_without_the_token_nothing_under_v1_answers(
    service: httpx.Client, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = service.post(path, json={"source": "particles.star"}, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert set(response.json()) == {"error"}


def test_a_service_without_a_token_does_not_start(judging: InProcess, served: Served) -> None:
    with pytest.raises(SettingsError, match="token"):
        application(judging, served, token="", roots=(Path("/"),))


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"source": "/etc/passwd", "rows": [0, 1]}, 403, "none of the folders"),
        ({"source": "../x.star", "rows": [0, 1]}, 403, "none of the folders"),
        ({"source": "absent.star", "rows": [0, 1]}, 404, "no such file"),
        ({"source": "particles.star", "rows": [0, 171]}, 413, "171 rows are more than the 170"),
        ({"source": "particles.star", "rows": [170, 176]}, 422, "has 175 rows"),
        ({"source": "particles.star", "rows": [3, 3]}, 422, "0 <= first < end"),
        ({"source": "particles.star", "rows": "all"}, 422, "rows"),
        (
            {"source": "particles.star", "rows": [False, True]},
            422,
            "rows.0: input should be a valid int",
        ),
        ({"source": "particles.star", "rows": [-1, 3]}, 422, "rows.0"),
        ({"source": "", "rows": [0, 1]}, 422, "source"),
        ({"rows": [0, 1]}, 422, "source: field required"),
        ({"source": "particles.star", "row": [0, 1]}, 422, "row"),
        ({"source": "particles.star", "ensemble": "new"}, 422, "no ensemble 'new' .* tiny, other"),
        ({"source": "x" * 70_000}, 413, "larger than 65,536 bytes"),
        ([1], 422, "the request"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence(
    service: httpx.Client, body: object, status: int, says: str
) -> None:
    response = service.post(JUDGE, json=body, headers=ALLOWED)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert re.search(says, response.json()["error"])


def test_only_a_request_or_a_stack_is_understood(service: httpx.Client) -> None:
    assert service.post(JUDGE, content=b"x", headers=ALLOWED).status_code == 415
    broken = {**ALLOWED, "Content-Type": "application/json"}
    assert service.post(JUDGE, content=b"{", headers=broken).status_code == 422


def test_an_upload_is_judged_and_removed(
    service: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = write_stack(tmp_path / "any.mrcs", particles(20))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    headers = {**ALLOWED, "Content-Type": STACK_TYPE}
    response = service.post(JUDGE, content=stack.read_bytes(), headers=headers)
    answer = JudgeAnswer.model_validate_json(response.content)
    assert [one.row for one in answer.verdicts] == list(range(20))
    assert answer.verdicts[1].image == "000002@upload.mrcs"

    for body, status in ((b"no stack", 422), (bytes(2 << 20), 413)):
        assert service.post(JUDGE, content=body, headers=headers).status_code == status
    in_pieces = service.post(JUDGE, content=iter([bytes(1 << 19)] * 3), headers=headers)
    assert in_pieces.status_code == 413
    assert not list(temporary.iterdir())


def test_a_full_service_says_when_to_come_back(
    service: httpx.Client, judging: InProcess, project: Path
) -> None:
    judging.gate.clear()
    body = {"source": str(project), "rows": [0, 5]}
    with ThreadPoolExecutor(2) as pool:
        under_way = [pool.submit(service.post, JUDGE, json=body, headers=ALLOWED) for _ in range(2)]
        for _ in under_way:
            assert judging.waiting.acquire(timeout=10)
        full = service.post(JUDGE, json=body, headers=ALLOWED)
        judging.gate.set()
        assert [one.result().status_code for one in under_way] == [200, 200]
    assert full.status_code == 429
    assert int(full.headers["Retry-After"]) >= 1
    assert service.post(JUDGE, json=body, headers=ALLOWED).status_code == 200


def test_what_was_judged_is_counted_for_prometheus(service: httpx.Client, project: Path) -> None:
    def counted(name: str, **labels: str) -> float:
        lines = service.get("/metrics").text.splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(name) and all(one in line for one in wanted)
        )

    before = counted("cryoray_images_total", ensemble="tiny")
    asked = counted("cryoray_disagreements_total", ensemble="tiny")
    body = {"source": str(project), "rows": [0, 40]}
    answer = JudgeAnswer.model_validate_json(
        service.post(JUDGE, json=body, headers=ALLOWED).content
    )
    service.post(JUDGE, json=body)
    assert counted("cryoray_images_total", ensemble="tiny") == before + 40
    third = sum(one.d3 is not None for one in answer.verdicts)
    assert counted("cryoray_disagreements_total", ensemble="tiny") == asked + third
    assert counted("cryoray_requests_total", status="401") >= 1
    assert counted("cryoray_requests_in_flight") == 0


def test_health_is_what_a_request_would_find(service: httpx.Client, judging: InProcess) -> None:
    assert service.get("/healthz").json() == {"status": "ok"}
    judging.gate.clear()
    assert service.get("/healthz").status_code == 503


def test_what_cannot_be_read_is_listed_not_lost(
    judging: InProcess, served: Served, tmp_path: Path
) -> None:
    star = write_project(tmp_path, (10, 10, 10))
    damaged = particles(10)
    damaged[4, 0, 0] = np.nan
    write_stack(tmp_path / "Extract/job001/mic_2.mrcs", damaged)
    (tmp_path / "Extract/job001/mic_3.mrcs").unlink()
    with over_http(application(judging, served, roots=(tmp_path,))) as c:
        response = c.post(JUDGE, json={"source": str(star)}, headers=ALLOWED)
    answer = JudgeAnswer.model_validate_json(response.content)
    reasons = {one.row: one.reason for one in answer.quarantined}
    assert len(answer.verdicts) == 19
    assert sorted([*reasons, *(one.row for one in answer.verdicts)]) == list(range(30))
    assert sum("no such stack" in reason for reason in reasons.values()) == 10
    assert sum("NaN" in reason for reason in reasons.values()) == 1


def test_an_answer_that_lacks_rows_is_our_fault(
    service: httpx.Client, judging: InProcess, project: Path
) -> None:
    judging.loses_rows = True
    response = service.post(JUDGE, json={"source": str(project), "rows": [0, 50]}, headers=ALLOWED)
    assert response.status_code == 500
    assert "50 rows were requested" in response.json()["error"]


def test_what_takes_too_long_is_given_up_in_a_sentence(
    judging: InProcess, served: Served, project: Path
) -> None:
    body = {"source": str(project), "rows": [0, 5]}
    with over_http(application(judging, served, roots=(project.parent,), timeout=2.0)) as c:
        judging.gate.clear()
        late = c.post(JUDGE, json=body, headers=ALLOWED)
        assert late.status_code == 504
        assert "longer than 2" in late.json()["error"]
        judging.gate.set()
        assert c.post(JUDGE, json=body, headers=ALLOWED).status_code == 200
        assert "cryoray_requests_in_flight 0.0" in c.get("/metrics").text


def test_a_body_that_never_ends_is_given_up_too(
    judging: InProcess, served: Served, project: Path
) -> None:
    app = application(judging, served, roots=(project.parent,), timeout=0.3)
    with over_http(app) as c, socket.create_connection((c.base_url.host, c.base_url.port)) as slow:
        slow.sendall(
            f"POST {JUDGE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: {STACK_TYPE}\r\nContent-Length: 1000\r\n\r\nMAP".encode()
        )
        slow.settimeout(10)
        assert b" 504 " in slow.recv(4096)


def test_judges_that_fail_are_unavailable_not_the_askers_fault(
    service: httpx.Client, judging: InProcess, project: Path, served: Served
) -> None:
    judging.breaks.add(served.digest)
    failed = service.post(JUDGE, json={"source": str(project), "rows": [0, 5]}, headers=ALLOWED)
    assert failed.status_code == 503
    assert "The judges of tiny failed" in failed.json()["error"]


def test_every_stage_is_timed_and_every_batch_weighed(
    judging: InProcess, served: Served, project: Path
) -> None:
    with over_http(application(judging, served, roots=(project.parent,))) as c:
        c.post(JUDGE, json={"source": str(project), "rows": [0, 40]}, headers=ALLOWED)
        lines = dict(line.rsplit(" ", 1) for line in c.get("/metrics").text.splitlines())
    for stage in ("plan", "answer"):
        assert float(lines[f'cryoray_stage_seconds_count{{stage="{stage}"}}']) == 1
    judged = sum(
        float(lines[f'cryoray_images_total{{ensemble="tiny",verdict="{v}"}}']) for v in VERDICTS
    )
    assert judged == 40
    kept = float(lines['cryoray_images_total{ensemble="tiny",verdict="keep"}'])
    assert float(lines['cryoray_keep_rate{ensemble="tiny"}']) == pytest.approx(kept / 40)
    asked = float(lines['cryoray_disagreements_total{ensemble="tiny"}'])
    assert float(lines['cryoray_disagreement_rate{ensemble="tiny"}']) == pytest.approx(asked / 40)
