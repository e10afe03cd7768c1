"""A session's verdicts rest on one profile: provisional at first, renewed at set sizes, then settled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryoray.models import registry
from cryoray.models.profile import Profile
from cryoray.records import VERDICTS
from cryoray.serving import local
from cryoray.session.profiling import SIZES, is_due, spread
from cryoray.session.schema import FATES
from cryoray.settings import ClassifySettings, ServeSettings, Settings
from cryoray.verbs.classify import classify
from tests import examples
from tests.session.service import Service, running
from tests.session.test_watcher import Session, extracted, images, lines, once, watching

pytestmark = pytest.mark.long

TOKEN = "a-token-of-these-tests-which-nobody-guesses"


def within_projects(path: Path, seed: int = 0) -> Path:
    """An ensemble that judges within projects, by heads that nobody trained."""
    examples.save_ensemble(path, seed=seed)
    examples.with_heads(path, seed=seed)
    return path


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return within_projects(tmp_path_factory.mktemp("ensembles") / "particle")


@pytest.fixture
def service(ensemble: Path) -> Iterator[Service]:
    with running([Path("/")], {"particle": ensemble}) as made:
        yield made


def tables(session: Session | Any) -> dict[str, pa.Table]:
    """`verdicts.parquet` of each stack, by its name."""
    watcher: Any = getattr(session, "watcher", session)
    return {
        Path(row.path).name: pq.read_table(
            watcher.context.place(Path(row.path)) / "verdicts.parquet"
        )
        for row in watcher.ledger.stacks("s", "judged")
    }


def profile_of(table: pa.Table) -> str | None:
    value = table.schema.metadata.get(b"profile")
    return value.decode() if value else None


def judged_by(session: Session, count: int) -> str:
    """The profile by which ``count`` stacks, which are all, are judged, when they are."""

    def one_profile() -> bool:
        rows = session.ledger.stacks("s", "judged")
        profiles = {row.profile for row in rows}
        return len(rows) == count and len(profiles) == 1 and None not in profiles

    session.until(one_profile)
    return str(session.ledger.stacks("s", "judged")[0].profile)


def test_classify_the_service_and_a_session_agree_on_the_same_rows_with_the_same_profile(
    ensemble: Path, project: Path, tmp_path: Path
) -> None:
    sessions = tmp_path / "sessions"
    serve = ServeSettings(ensembles=(str(ensemble),), token=TOKEN, roots=(Path("/"),))
    with local.start(Settings(registry=tmp_path, serve=serve)) as service:
        watcher, _ = once(project.parent, service, out=sessions)  # type: ignore[arg-type]
        profile = Profile.load(watcher.places.folder / "profile.json")
        mine = tables(watcher)
        stacks = sorted(project.parent.rglob("*.mrcs"))
        with service.client() as client:
            body = profile.model_dump(mode="json")
            assert client.profile(stacks) == body
            answers = {one.name: client.judge(one, profile=body) for one in stacks}
    settings = ClassifySettings(
        ensemble=str(ensemble),
        profile=str(watcher.places.folder / "profile.json"),
        review_at_most=1,
    )
    out = classify(project, tmp_path / "out", Settings(classify=settings))
    watcher.close()
    rows = {row["image"]: row for row in pq.read_table(out / "verdicts.parquet").to_pylist()}
    assert len(rows) == sum(map(len, mine.values())) == 175
    for name, table in mine.items():
        assert profile_of(table) == profile.digest
        session = table.to_pylist()
        assert session == [rows[row["image"]] for row in session]
        by_frame = sorted(session, key=lambda row: row["image"])
        for column in ("score", "verdict", "d1", "d2", "d3"):
            judged = answers[name].judged[column].to_pylist()
            assert judged == [row[column] for row in by_frame]


def test_stacks_are_judged_alone_then_by_a_profile_that_is_renewed_once_each(
    service: Service, root: Path
) -> None:
    extracted(root, "mic_1", 40, seed=1)
    with watching(root, service, audit=10) as session:
        session.judged(1)
        (first,) = tables(session).values()
        assert profile_of(first) is None
        assert first.schema.metadata[b"provisional"] == b"yes"
        (row,) = session.ledger.stacks("s")
        sample = [(one.stack, one.row) for one in session.ledger.audit_sample("s")]

        extracted(root, "mic_2", 40, seed=2)
        small = judged_by(session, 2)
        extracted(root, "mic_3", 180, seed=3)
        large = judged_by(session, 3)
        assert small != large
        # Alone, by 80 images, by 260; by 80 and by 260; by 260.
        assert service.judging.calls == 6

        made = [one.data for one in session.events if one.name == "profile.made"]
        assert [(one["profile"], one["seen"]) for one in made] == [(small, 80), (large, 260)]
        (again,) = [one for one in session.ledger.stacks("s") if one.id == row.id]
        assert again.judged == row.judged, "when it was judged first"
        there = [one for one in session.ledger.audit_sample("s") if one.stack == row.id]
        assert {(one.stack, one.row) for one in there} <= set(sample)
    assert json.loads((session.folder / "profile.json").read_text())["digest"] == large
    assert (
        np.abs(first["d1"].to_numpy() - tables(session)["mic_1.mrcs"]["d1"].to_numpy()).max() > 0.05
    )

    row_counts = session.watcher.row_counts()
    assert (row_counts["stacks"], row_counts["rows"]) == (3, 260)
    counted = Counter(
        verdict for table in tables(session).values() for verdict in table["verdict"].to_pylist()
    )
    assert [row_counts[name] for name in FATES[:3]] == [counted[name] for name in VERDICTS]
    merged = {side: images(session.folder / f"{side}.star") for side in FATES[:3]}
    assert [len(merged[side]) for side in FATES[:3]] == [counted[name] for name in VERDICTS]
    assert len({name for some in merged.values() for name in some}) == 260
    assert session.names()["micrograph.judged"] == 3
    changed = lines(session.watcher, "verdicts.changed")
    assert all(one["data"]["changed"] for one in changed)
    assert len({one["id"] for one in changed}) == len(changed)
    assert len(session.ledger.micrographs("s")) == 3


def test_what_people_said_survives_and_counts_in_place_of_the_new_verdict(
    service: Service, root: Path
) -> None:
    stack = extracted(root, "mic_1", 40, seed=1)
    with watching(root, service, audit=0) as session:
        session.judged(1)
        (row,) = session.ledger.stacks("s")
        before = pq.read_table(session.watcher.context.place(stack) / "verdicts.parquet")
        for at in range(40):
            session.ledger.override(
                "s", row.id, at, at % 2 == 0,
                image=before["image"][at].as_py(), before=before["verdict"][at].as_py(),
                score=before["score"][at].as_py(), digest=row.digest, who="Ada",
            )  # fmt: skip
        extracted(root, "mic_2", 40, seed=2)
        judged_by(session, 2)
        now = tables(session)
        assert now["mic_1.mrcs"]["verdict"].to_pylist() != before["verdict"].to_pylist()
        said = session.ledger.overrides("s")
        assert [one.keep for one in said] == [at % 2 == 0 for at in range(40)]
        assert [one.before for one in said] == now["mic_1.mrcs"]["verdict"].to_pylist()
        assert [one.score for one in said] == now["mic_1.mrcs"]["score"].to_pylist()
        others = Counter(now["mic_2.mrcs"]["verdict"].to_pylist())
        totals = session.ledger.totals("s")["particle/judged"]
        counts = (20 + others["keep"], 20 + others["discard"], others["review"])
        assert tuple(totals[name] for name in FATES[:3]) == counts
    merged = tuple(len(images(session.folder / f"{side}.star")) for side in FATES[:3])
    assert merged == counts


def test_a_watcher_that_was_killed_goes_on_with_the_stacks_that_are_left(
    service: Service, root: Path
) -> None:
    stacks = [extracted(root, f"mic_{at}", 10, seed=at) for at in range(3)]
    with watching(root, service) as session:
        session.judged(3)
        ledger = session.ledger
        with service.client() as client:
            body = client.profile(stacks)
        # As if it had been killed right after the new profile was in the ledger.
        ledger.set_profile("s", body, 64)
    calls = service.judging.calls
    watcher, events = once(root, service)
    assert service.judging.calls == calls + 3
    assert {profile_of(table) for table in tables(watcher).values()} == {body["digest"]}
    assert watcher.row_counts()["rows"] == 30
    assert "micrograph.judged" not in [one.name for one in events]
    assert [one.name for one in events].count("profile.applied") == 1
    watcher.close()
    once(root, service)[0].close()
    assert service.judging.calls == calls + 3, "all rests on it"


def test_what_is_there_at_once_is_judged_once_by_the_profile_of_all_of_it(
    service: Service, root: Path
) -> None:
    for at in range(2):
        extracted(root, f"mic_{at}", 40, seed=at)
    watcher, _ = once(root, service)
    assert service.judging.calls == 2
    assert len({profile_of(table) for table in tables(watcher).values()} - {None}) == 1
    watcher.close()


def test_few_images_have_a_profile_at_the_end(service: Service, root: Path) -> None:
    extracted(root, "mic_1", 20)
    (root / "none.mrcs").write_bytes(b"no stack at all")
    watcher, _ = once(root, service)
    session = watcher.ledger.session("s")
    assert session is not None
    assert (session.profiled, session.profile["images"]) == (20, 20)
    assert profile_of(tables(watcher)["mic_1.mrcs"]) == session.profile["digest"]
    watcher.close()


def test_an_ensemble_without_a_context_judges_each_image_alone_and_that_is_final(
    tiny_ensemble: Path, root: Path
) -> None:
    extracted(root, "mic_1", 80)
    with running([root], {"tiny": tiny_ensemble}) as service:
        watcher, events = once(root, service)
        assert service.judging.calls == 1
    (table,) = tables(watcher).values()
    assert not {b"profile", b"provisional"} & set(table.schema.metadata)
    assert not (watcher.places.folder / "profile.json").exists()
    assert not [one for one in events if one.name.startswith("profile.")]
    watcher.close()


def test_an_ensemble_that_is_promoted_gets_a_profile_of_its_own(
    ensemble: Path, root: Path, tmp_path: Path
) -> None:
    place = tmp_path / "registry"
    registry.promote(ensemble, place, "mine")
    other = within_projects(tmp_path / "other", seed=5)
    serve = ServeSettings(ensembles=("mine",), token=TOKEN, roots=(root,), poll=0.05)
    extracted(root, "mic_1", 70, seed=1)
    with (
        local.start(Settings(registry=place, serve=serve)) as service,
        watching(root, service) as session,  # type: ignore[arg-type]
    ):
        first = judged_by(session, 1)
        registry.promote(other, place, "mine")
        digest = registry.active(place, "mine")
        with service.client() as client:
            session.until(lambda: client.ensembles().ensembles[0].digest == digest)
        extracted(root, "mic_2", 20, seed=2)
        session.until(lambda: session.watcher.row_counts()["rows"] == 90)
        second = judged_by(session, 2)
        assert first != second
        rows = session.ledger.stacks("s")
        assert {(row.state, row.ensemble) for row in rows} == {("judged", digest)}
        assert session.names()["stack.rejected"] == 0
        # The ledger has it first, the file of events a moment later.
        session.until(lambda: session.names()["micrograph.judged"] == 2)
        assert json.loads((session.folder / "profile.json").read_text())["ensemble"] == digest


def test_sizes_are_passed_once_each() -> None:
    assert not is_due(SIZES[0] - 1, 0)
    assert is_due(SIZES[0], 0)
    assert not is_due(SIZES[1] - 1, SIZES[0])
    assert is_due(SIZES[1], SIZES[0])
    assert not is_due(10**9, SIZES[-1])


def test_the_sources_of_a_profile_fit_into_a_request() -> None:
    paths = [Path("/data", "x" * 200, f"{at:06d}.mrcs") for at in range(5000)]
    some = spread(paths)
    assert 100 < len(some) <= 128
    assert len({*some}) == len(some)
    assert (some[0], some[-1]) == (paths[0], paths[-1])
    assert spread(paths[:10]) == paths[:10]
    long = [Path("/data", *["x" * 200] * 19, f"{at}.mrcs") for at in range(500)]
    assert 1 < sum(len(str(path)) for path in spread(long)) < 64 << 10
