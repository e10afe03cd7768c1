"""A project's profile gives the same verdicts from `classify`, from Python, from Ray and from the service."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray import notebook
from cryoray.engine import local as threads
from cryoray.engine import pool
from cryoray.errors import EnsembleError, InputError
from cryoray.formats.source import open_source
from cryoray.models.ensemble import Ensemble
from cryoray.models.profile import Profile
from cryoray.preparation.plan import plan
from cryoray.protocol.client import RefusedError
from cryoray.records import MEMBERS, ignore
from cryoray.serving import local
from cryoray.settings import ClassifySettings, RuntimeSettings, ServeSettings, Settings
from cryoray.verbs.classify import classify
from tests.examples import save_ensemble, with_heads, write_project

TOKEN = "a-token-of-these-tests-which-nobody-guesses"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "particle"
    save_ensemble(path)
    with_heads(path)
    return path


@pytest.fixture(scope="module")
def out(judge: Path, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings(classify=ClassifySettings(ensemble=str(judge), range_mib=1))
    return classify(project, tmp_path_factory.mktemp("classified") / "out", settings)


def settings_for(judge: Path, **classify: object) -> Settings:
    return Settings(classify=ClassifySettings(ensemble=str(judge), range_mib=1, **classify))


def test_classify_saves_the_profile_by_which_it_judged_and_takes_it_again(
    judge: Path, project: Path, out: Path, tmp_path: Path
) -> None:
    profile = Profile.load(out / "profile.json")
    assert (profile.images, profile.ensemble) == (175, Ensemble.load(judge).digest)
    table = pq.read_table(out / "verdicts.parquet")
    assert table.schema.metadata[b"profile"].decode() == profile.digest
    given = settings_for(judge, profile=str(out / "profile.json"))
    again = pq.read_table(classify(project, tmp_path / "again", given) / "verdicts.parquet")
    assert again.equals(table)
    # One stack of the project by the project's profile: the same verdicts of its images as with all.
    stack = project.parent / "Extract/job001/mic_2.mrcs"
    alone = pq.read_table(classify(stack, tmp_path / "stack", given) / "verdicts.parquet")
    score = dict(zip(table["image"].to_pylist(), table["score"].to_pylist(), strict=True))
    names = [
        f"{name.split('@')[0]}@Extract/job001/mic_2.mrcs" for name in alone["image"].to_pylist()
    ]
    assert alone["score"].to_pylist() == [score[name] for name in names]


def test_without_a_profile_the_context_free_score_stands(
    judge: Path, project: Path, out: Path, tmp_path: Path
) -> None:
    free = classify(project, tmp_path / "free", settings_for(judge, profile="none"))
    assert not (free / "profile.json").exists()
    table, within = (pq.read_table(each / "verdicts.parquet") for each in (free, out))
    assert b"profile" not in table.schema.metadata
    assert np.abs(table["d1"].to_numpy() - within["d1"].to_numpy()).max() > 0.05


def test_a_profile_of_another_ensemble_is_refused(
    judge: Path, project: Path, out: Path, tmp_path: Path
) -> None:
    save_ensemble(tmp_path / "other", seed=5)
    with_heads(tmp_path / "other")
    given = settings_for(tmp_path / "other", profile=str(out / "profile.json"))
    with pytest.raises(EnsembleError, match="is of the ensemble"):
        classify(project, tmp_path / "out", given)
    with pytest.raises(InputError, match="no such profile"):
        classify(project, tmp_path / "out", settings_for(judge, profile=str(tmp_path / "absent")))


def test_python_and_the_service_judge_alike_by_the_same_profile(
    judge: Path, project: Path, out: Path, tmp_path: Path
) -> None:
    table = pq.read_table(out / "verdicts.parquet")
    python = notebook.load_ensemble(judge, settings=Settings(registry=tmp_path)).classify(project)
    serve = ServeSettings(ensembles=(str(judge),), token=TOKEN, roots=(project.parent,))
    with (
        local.start(Settings(registry=tmp_path, serve=serve)) as here,
        here.client() as client,
    ):
        made = client.profile(project)
        assert made == json.loads((out / "profile.json").read_text())
        some = client.judge(project, (20, 90), profile=made)
        every = client.judge(project, profile=made)
        free = client.judge(project)
        with pytest.raises(RefusedError, match="digest names"):
            client.judge(project, profile={**made, "images": 3})
        other = Profile.parse(json.dumps(made)).model_copy(update={"ensemble": "0" * 64}).named()
        with pytest.raises(RefusedError, match="of another ensemble") as refused:
            client.judge(project, profile=other.model_dump(mode="json"))
        assert refused.value.status == 409
        # Judges would fail over it, and a promoted ensemble whose judges fail is rolled back.
        one, *rest = Profile.parse(json.dumps(made)).members
        small = one.model_copy(update={"mean": (0.0,), "deviation": (1.0,)})
        made_up = {"members": (small, *rest)}
        wrong = Profile.parse(json.dumps(made)).model_copy(update=made_up).named()
        with pytest.raises(RefusedError, match="not of the members") as refused:
            client.judge(project, profile=wrong.model_dump(mode="json"))
        assert refused.value.status == 422
    assert every.verdict.tolist() == python.verdict.tolist()
    for name in ("score", *MEMBERS):
        values = table[name].to_pylist()
        assert python.table[name].to_pylist() == values
        assert every.judged[name].to_pylist() == values
        assert some.judged[name].to_pylist() == values[20:90]
    assert every.about["profile"] == made["digest"]
    assert "profile" not in free.about
    assert np.abs(free.d1 - every.d1).max() > 0.05


def test_a_service_whose_ensemble_has_no_context_makes_no_profiles(
    tiny_ensemble: Path, project: Path, tmp_path: Path
) -> None:
    serve = ServeSettings(ensembles=(str(tiny_ensemble),), token=TOKEN, roots=(project.parent,))
    with (
        local.start(Settings(registry=tmp_path, serve=serve)) as here,
        here.client() as client,
        pytest.raises(RefusedError, match="makes no profiles"),
    ):
        client.profile(project)


def test_a_profile_of_several_sources_is_that_of_all_their_rows(
    judge: Path, project: Path, tmp_path: Path
) -> None:
    job = project.parent / "Extract/job001"
    stacks = [job / f"mic_{number}.mrcs" for number in (1, 2, 3)]
    head, _, rest = project.read_text().rpartition("\n_")
    label, *rows = rest.splitlines()
    place = "@Extract/job001/"
    in_order = sorted(rows, key=lambda row: row.partition(" ")[0].partition("@")[::-1])
    whole = tmp_path / "whole.star"
    whole.write_text("\n".join([f"{head}\n_{label}", *in_order, ""]).replace(place, f"@{job}/"))
    bad = tmp_path / "bad.mrcs"
    bad.write_bytes(b"no stack at all")
    serve = ServeSettings(ensembles=(str(judge),), token=TOKEN, roots=(Path("/"),))
    with (
        local.start(Settings(registry=tmp_path, serve=serve)) as here,
        here.client() as client,
    ):
        made = client.profile(whole)
        assert made["images"] == 175
        assert client.profile(stacks) == made
        assert client.profile([stacks[0], bad, *stacks[1:]]) == made
        with pytest.raises(RefusedError, match="MRC"):
            client.profile([bad])


@pytest.mark.ray
def test_rays_actors_judge_each_project_by_its_own_profile(
    ray_cluster: RuntimeSettings, judge: Path, project: Path, tmp_path: Path
) -> None:
    ensemble = Ensemble.load(judge)
    second = write_project(tmp_path / "second", (30, 20))
    plans = [plan(open_source(path), ensemble.preparation, 1) for path in (project, second)]
    judges = [ensemble.with_profile(profile) for profile in threads.profiles(plans, ensemble)]
    assert judges[0].profile != judges[1].profile
    here = threads.judge_plans(plans, judges, 1, ignore)
    there = pool.judge_plans(plans, judges, True, 1, ignore)
    for one, other in zip(here, there, strict=True):
        assert one.table.equals(other.table)
        assert one.about == other.about
