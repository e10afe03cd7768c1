"""Another ensemble is promoted while requests are answered: it takes over, or makes way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cryoray.models import registry
from cryoray.models.ensemble import Ensemble
from cryoray.protocol.messages import ENSEMBLES, JUDGE, SHADOW, Ensembles, JudgeAnswer, ShadowReport
from cryoray.serving.lineup import Served
from tests.examples import Saved, save_ensemble, saved
from tests.serving.test_ingress import ALLOWED, InProcess, application, over_http

pytestmark = pytest.mark.long

NAME = "live"


@pytest.fixture
def root(tmp_path: Path, tiny_ensemble: Path) -> Path:
    registry.promote(tiny_ensemble, tmp_path / "registry", NAME)
    return tmp_path / "registry"


@pytest.fixture
def other(tmp_path: Path) -> Saved:
    return save_ensemble(tmp_path / "other", seed=7)


@pytest.fixture
def judging(tiny_ensemble: Path) -> InProcess:
    return InProcess(Ensemble.load(tiny_ensemble))


@pytest.fixture
def first(judging: InProcess) -> str:
    return judging.ensemble.digest


def served(root: Path, name: str = NAME) -> Served:
    path = registry.resolve(name, root)
    return Served.of(name, Ensemble.load(path), path)


@pytest.fixture
def service(judging: InProcess, root: Path, project: Path) -> Iterator[httpx.Client]:
    app = application(judging, served(root), root=root, roots=(project.parent,))
    with over_http(app) as client:
        yield client


def until(happens: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while not (found := happens()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def lineup(service: httpx.Client) -> Ensembles:
    return Ensembles.model_validate_json(service.get(ENSEMBLES, headers=ALLOWED).content)


def ask(service: httpx.Client, project: Path, end: int = 20) -> str:
    response = service.post(JUDGE, json={"source": str(project), "rows": [0, end]}, headers=ALLOWED)
    assert response.status_code == 200, response.text
    return JudgeAnswer.model_validate_json(response.content).ensemble


def happened(service: httpx.Client, what: str) -> dict[str, str]:
    found = until(lambda: [one for one in lineup(service).events if one.name == what])
    return dict(found[-1].data)


def test_what_is_promoted_answers_and_what_is_rolled_back_no_longer(
    service: httpx.Client, project: Path, root: Path, other: Saved, first: str
) -> None:
    assert ask(service, project) == first
    registry.promote(other.path, root, NAME)
    assert happened(service, "ensemble.promoted")["digest"] == other.digest
    assert ask(service, project) == other.digest
    (one,) = lineup(service).ensembles
    assert (one.digest, one.before) == (other.digest, first)
    registry.rollback(root, NAME)
    until(lambda: lineup(service).ensembles[0].digest == first)
    assert ask(service, project) == first


def damage(root: Path, digest: str) -> None:
    (root / NAME / digest / "d1.safetensors").write_bytes(b"")


def not_a_number(tmp_path: Path) -> Path:
    """An ensemble whose files are whole, and whose first member says NaN."""
    ensemble = save_ensemble(tmp_path / "nan", seed=3)
    ensemble.networks[0].verdict.bias.data.fill_(float("nan"))
    return saved(ensemble, tmp_path / "nan", "# NaN\n").path


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("damaged", "d1 are missing or damaged"),
        ("other kind", "judges class2d images"),
        ("no numbers", "not probabilities"),
        ("absent", "no ensemble.json"),
    ],
)
def test_what_cannot_judge_never_answers_and_is_rolled_back(
    service: httpx.Client,
    project: Path,
    root: Path,
    first: str,
    tmp_path: Path,
    bad: str,
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = {
        "other kind": lambda: save_ensemble(tmp_path / "classes", "class2d").path,
        "no numbers": lambda: not_a_number(tmp_path),
    }.get(bad, lambda: save_ensemble(tmp_path / "other", seed=7).path)()
    digest = registry.install(path, root, NAME)
    if bad == "damaged":
        damage(root, digest)
    if bad == "absent":
        digest = "0" * 64
    # As an older or another program would, which checks nothing.
    with caplog.at_level(logging.WARNING, "ray.serve.cryoray"):
        (root / NAME / "active").write_text(digest)
        data = happened(service, "ensemble.rolled-back")
    assert (data["digest"], data["instead_of"]) == (first, digest)
    assert says in data["reason"]
    assert says in caplog.text
    assert registry.active(root, NAME) == first
    assert ask(service, project) == first
    assert says in registry.history(root, NAME)[-1].reason


def test_judges_that_fail_on_probation_are_rolled_back_and_nobody_notices(
    service: httpx.Client,
    project: Path,
    root: Path,
    other: Saved,
    first: str,
    judging: InProcess,
) -> None:
    registry.promote(other.path, root, NAME)
    happened(service, "ensemble.promoted")
    judging.breaks.add(other.digest)
    assert ask(service, project) == first
    assert "they died" in happened(service, "ensemble.rolled-back")["reason"]
    assert registry.active(root, NAME) == first


def test_after_probation_a_failure_is_a_failure(
    judging: InProcess, project: Path, root: Path, other: Saved
) -> None:
    app = application(judging, served(root), root=root, roots=(project.parent,), probation=0)
    with over_http(app) as service:
        registry.promote(other.path, root, NAME)
        happened(service, "ensemble.promoted")
        assert lineup(service).ensembles[0].before is None
        judging.breaks.add(other.digest)
        body = {"source": str(project), "rows": [0, 5]}
        assert service.post(JUDGE, json=body, headers=ALLOWED).status_code == 503
    assert registry.active(root, NAME) == other.digest


def test_a_registry_that_cannot_be_written_does_not_keep_the_bad_one(
    service: httpx.Client, project: Path, root: Path, other: Saved, first: str
) -> None:
    digest = registry.install(other.path, root, NAME)
    damage(root, digest)
    history = root / NAME / "history.jsonl"
    history.unlink()
    history.mkdir()  # where nothing can be appended, as on a read-only disk
    (root / NAME / "active").write_text(digest)
    happened(service, "ensemble.rolled-back")
    time.sleep(0.2)
    assert ask(service, project) == first
    assert sum(one.name == "ensemble.rolled-back" for one in lineup(service).events) == 1


def test_an_unreadable_active_file_changes_nothing(
    service: httpx.Client, project: Path, root: Path, other: Saved, first: str
) -> None:
    (root / NAME / "active").write_text("?")
    assert "holds no digest" in happened(service, "registry.failed")["reason"]
    assert ask(service, project) == first
    (root / NAME / "active").write_text(registry.install(other.path, root, NAME))
    happened(service, "ensemble.promoted")
    assert ask(service, project) == other.digest


def report(service: httpx.Client) -> ShadowReport:
    return ShadowReport.model_validate_json(service.get(SHADOW, headers=ALLOWED).content)


@pytest.fixture
def beside(judging: InProcess, root: Path, other: Saved, project: Path) -> Iterator[httpx.Client]:
    registry.promote(other.path, root, "candidate")
    app = application(
        judging, served(root), root=root, shadow=served(root, "candidate"), roots=(project.parent,)
    )
    with over_http(app) as client:
        yield client


def test_a_shadow_is_compared_with_what_was_answered(
    beside: httpx.Client, project: Path, first: str, other: Saved, judging: InProcess
) -> None:
    for end in (30, 175):
        assert ask(beside, project, end) == first
    until(lambda: sum(one.images for one in report(beside).agreements) == 205)
    (agreement,) = report(beside).agreements
    assert (agreement.ensemble, agreement.active, agreement.shadow) == (NAME, first, other.digest)
    assert sum(sum(row.values()) for row in agreement.verdicts.values()) == 205
    assert agreement.agreement is not None
    assert 0 < agreement.agreement < 1
    assert agreement.score_difference is not None
    assert agreement.score_difference > 0
    metrics = beside.get("/metrics").text
    assert 'cryoray_shadow_images_total{active="keep",ensemble="live",shadow="discard"}' in metrics
    assert [one.name for one in lineup(beside).ensembles] == [NAME]
    body = {"source": str(project), "rows": [0, 5], "ensemble": "candidate"}
    assert beside.post(JUDGE, json=body, headers=ALLOWED).status_code == 422


def test_a_shadow_that_breaks_or_hangs_never_delays_an_answer(
    beside: httpx.Client, project: Path, first: str, other: Saved, judging: InProcess
) -> None:
    judging.shadow_gate.clear()
    for _ in range(9):
        assert ask(beside, project, 5) == first
    assert report(beside).skipped == 25
    judging.breaks.add(other.digest)
    judging.shadow_gate.set()
    until(lambda: report(beside).failed == 20)
    assert "the shadow broke" in (report(beside).last_failure or "")
    assert ask(beside, project) == first


def test_an_upload_is_there_until_the_shadow_has_read_it(
    beside: httpx.Client, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    stack = (project.parent / "Extract/job001/mic_2.mrcs").read_bytes()
    headers = {**ALLOWED, "Content-Type": "application/octet-stream"}
    assert beside.post(JUDGE, content=stack, headers=headers).status_code == 200
    until(lambda: sum(one.images for one in report(beside).agreements) == 35)
    until(lambda: not list(temporary.iterdir()))
    assert report(beside).failed == 0


def test_without_a_shadow_the_report_says_so(service: httpx.Client) -> None:
    assert report(service).shadow is None
