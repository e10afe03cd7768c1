"""A source to verdicts, by threads of this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.boosting.voting import with_class
from cryoray.errors import EnsembleError, InputError, QuarantineError
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.formats.verdicts import PARTITIONS
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.records import VERDICTS_SCHEMA, Event, Progress
from cryoray.settings import ClassifySettings, Settings
from cryoray.verbs.classify import classify
from tests.classes import COUNTS, write_class_job
from tests.examples import particles, save_ensemble, write_project, write_stack, write_star
from tests.formats.files import write_cs_job


@pytest.fixture
def settings(tiny_ensemble: Path) -> Settings:
    return Settings(classify=ClassifySettings(ensemble=str(tiny_ensemble), range_mib=1))


def rows_of(star: Path) -> list[str]:
    return open_source(star).images.tolist()


def test_every_row_is_judged_in_the_sources_order_as_one_process_would(
    project: Path, settings: Settings, tmp_path: Path
) -> None:
    told: list[Progress] = []
    events: list[Event] = []
    out = classify(
        project, tmp_path / "out", settings, on_progress=told.append, on_event=events.append
    )
    table = pq.read_table(out / "verdicts.parquet")
    assert table.schema == VERDICTS_SCHEMA
    assert table["image"].to_pylist() == rows_of(project)
    assert pq.read_table(out / "quarantine.parquet").num_rows == 0

    ensemble = Ensemble.load(Path(str(settings.classify.ensemble)))
    source = open_source(project)
    for part in plan(source, ensemble.preparation, 64).ranges:
        here = prepare_range(part, ensemble.preparation)
        said = ensemble.judge(here.images, here.features)
        there = table.take(here.rows)
        for name in ("score", "d1", "d2", "d3"):
            values = there[name].to_numpy()
            np.testing.assert_allclose(values, getattr(said, name), atol=1e-5)
        assert there["verdict"].to_pylist() == said.verdict.tolist()
        assert there["reason"].to_pylist() == said.reason.tolist()
    d3 = table["d3"].null_count
    assert 0 < d3 < len(table)

    sides = [rows_of(out / f"{side}.star") for side in ("kept", "discarded", "review")]
    verdicts = np.array(table["verdict"].to_pylist())
    for side, verdict in zip(sides, ("keep", "discard", "review"), strict=True):
        assert side == np.array(rows_of(project))[verdicts == verdict].tolist()
    assert (told[0].done, told[-1].done, told[-1].total) == (0, 175, 175)
    assert [event.name for event in events] == ["classify.planned", "classify.done"]
    assert events[-1].data["row_counts"] == "175 rows in = 175 out + 0 quarantined"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_read_is_listed_and_the_rest_is_judged(
    settings: Settings, tmp_path: Path
) -> None:
    star = write_project(tmp_path / "damaged", (20, 20, 20))
    stacks = tmp_path / "damaged/Extract/job001"
    images = particles(20)
    images[3, 5, 5] = np.nan
    write_stack(stacks / "mic_1.mrcs", images)
    (stacks / "mic_2.mrcs").unlink()
    with star.open("a") as file:
        file.write("000021@Extract/job001/mic_3.mrcs mic_3.mrc 1 9000 9000 4\n")
        file.write("000001@Extract/job001/mic_3.mrcs mic_3.mrc 1 9000 9000 4\n")
    out = classify(star, tmp_path / "out", settings)
    quarantine = pq.read_table(out / "quarantine.parquet").to_pylist()
    names = rows_of(star)
    assert [names[entry["row"] - 1] for entry in quarantine] == [
        entry["image"] for entry in quarantine
    ]
    reasons = [entry["reason"] for entry in quarantine]
    for part, count in (("NaN", 1), ("no such stack", 20), ("holds 20", 1), ("is the same", 1)):
        assert sum(part in reason for reason in reasons) == count
    assert len(quarantine) == 23
    assert rows_of(out / "quarantined.star") == [entry["image"] for entry in quarantine]
    assert pq.read_metadata(out / "verdicts.parquet").num_rows == 62 - 23


def test_a_folder_of_projects_gets_a_folder_each_and_replaces_older_verdicts(
    settings: Settings, tmp_path: Path
) -> None:
    stars = [write_project(tmp_path / "day" / name, (12, 9)) for name in ("one", "two")]
    old = tmp_path / "out" / "three"
    old.mkdir(parents=True)
    (old / "verdicts.parquet").touch()
    chosen = settings.classify.model_copy(update={"replace": True})
    replacing = settings.model_copy(update={"classify": chosen})
    out = classify(tmp_path / "day", tmp_path / "out", replacing)
    assert sorted(path.name for path in out.iterdir()) == ["one", "two"]
    one, two = (pq.read_table(out / name / "verdicts.parquet") for name in ("one", "two"))
    assert one["image"].to_pylist() == rows_of(stars[0])
    # The same images in both, so the same verdicts: no row went to the neighbour.
    assert one["verdict"].to_pylist() == two["verdict"].to_pylist()
    np.testing.assert_allclose(one["score"].to_numpy(), two["score"].to_numpy(), atol=1e-5)


def test_classes_are_judged_by_an_ensemble_of_classes_and_selected_as_relion_does(
    class_ensemble: Path, tmp_path: Path
) -> None:
    job = write_class_job(tmp_path)
    chosen = ClassifySettings(ensemble=str(class_ensemble), score_column=True)
    out = classify(job, tmp_path / "out", Settings(classify=chosen))
    table = pq.read_table(out / "verdicts.parquet")
    assert [name[:6] for name in table["image"].to_pylist()] == [
        *("000001", "000002", "000004", "000005")
    ]
    kept = [v == "keep" for v in table["verdict"].to_pylist()]
    kept.insert(2, False)  # the empty class
    backup = parse(out / "backup_selection.star")[""].numbers("rlnSelected")
    assert backup.tolist() == kept
    averages = parse(out / "class_averages.star")[""]
    assert averages.numbers("rlnParticleNr").tolist() == np.array(COUNTS)[kept].tolist()
    scores = averages.numbers("rlnPredictedClassScore").astype(np.float32)
    of_kept = [verdict == "keep" for verdict in table["verdict"].to_pylist()]
    assert scores.tolist() == table["score"].to_numpy()[of_kept].tolist()
    particles = parse(out / "particles.star")["particles"]
    assert len(particles) == np.array(COUNTS)[kept].sum()


def test_without_review_nothing_is_left_for_a_person(
    class_ensemble: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    job = write_class_job(tmp_path)
    chosen = ClassifySettings(
        ensemble=str(tiny_ensemble), class_ensemble=str(class_ensemble), review=False
    )
    out = classify(job, tmp_path / "out", Settings(classify=chosen))
    for folder, ensemble in ((out, tiny_ensemble), (out / "classes", class_ensemble)):
        table = pq.read_table(folder / "verdicts.parquet")
        words = np.array(table["verdict"].to_pylist())
        assert set(words) <= {"keep", "discard"}
        kept = table["score"].to_numpy()[words == "keep"]
        assert (kept >= np.float32(Ensemble.load(ensemble).threshold)).all()


def test_particles_and_their_classes_are_judged_together(
    class_ensemble: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    job = write_class_job(tmp_path)
    alone = ClassifySettings(ensemble=str(tiny_ensemble))
    both = alone.model_copy(update={"class_ensemble": str(class_ensemble), "score_column": True})
    own, out = (
        classify(job, tmp_path / name, Settings(classify=chosen))
        for name, chosen in (("own", alone), ("both", both))
    )
    before, after = (pq.read_table(folder / "verdicts.parquet") for folder in (own, out))
    assert after.schema.names == [*VERDICTS_SCHEMA.names, "class_score"]
    np.testing.assert_allclose(after["score"].to_numpy(), before["score"].to_numpy(), atol=1e-5)
    classes = pq.read_table(out / "classes/verdicts.parquet")
    place = [int(name[:6]) for name in classes["image"].to_pylist()]
    of_class = dict(zip(place, classes["verdict"].to_pylist(), strict=True))
    numbers = open_source(job).metadata["rlnClassNumber"].astype(int)
    expected = with_class(
        np.array(before["verdict"].to_pylist(), object),
        np.array([of_class.get(number, "") for number in numbers], object),
    )
    assert after["verdict"].to_pylist() == expected.tolist()
    kept = parse(out / "kept.star")["particles"]
    assert len(kept) == (expected == "keep").sum()
    assert kept.columns[-2:] == ("rlnCryorayScore", "rlnCryorayClassScore")
    assert (out / "classes/backup_selection.star").is_file()


def test_where_nothing_can_be_read_the_list_is_written_first(
    settings: Settings, tmp_path: Path
) -> None:
    star = write_star(tmp_path / "particles.star", ["1@gone.mrcs mic.mrc 1 9000 9000 4"])
    with pytest.raises(QuarantineError, match=r"out/quarantine\.parquet: 1 of 1 rows"):
        classify(star, tmp_path / "out", settings)
    assert pq.read_table(tmp_path / "out/quarantine.parquet")["row"].to_pylist() == [1]


def test_an_ensemble_of_another_kind_is_refused(
    project: Path, tiny_ensemble: Path, settings: Settings, tmp_path: Path
) -> None:
    of_classes = save_ensemble(tmp_path / "classes", kind="class2d").path
    other = Settings(classify=ClassifySettings(ensemble=str(of_classes)))
    with pytest.raises(
        EnsembleError, match=r"particles\.star: the ensemble .* judges class2d images"
    ):
        classify(project, tmp_path / "out", other)
    said = Settings(classify=ClassifySettings(ensemble=str(tiny_ensemble), kind="class2d"))
    with pytest.raises(EnsembleError, match="judges particle images, this holds class2d"):
        classify(project, tmp_path / "out", said)
    assert [path.name for path in tmp_path.iterdir()] == ["classes"]


def test_an_ensemble_that_is_not_there_is_named(project: Path, tmp_path: Path) -> None:
    settings = Settings(registry=tmp_path, classify=ClassifySettings(ensemble="absent"))
    with pytest.raises(EnsembleError, match="no such ensemble"):
        classify(project, tmp_path / "out", settings)


def test_a_folder_that_is_no_verdicts_is_not_replaced(
    project: Path, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="exists and is not a folder of verdicts; give --out"):
        classify(project, tmp_path, settings)
    assert (tmp_path / "thesis.tex").exists()


def test_an_empty_folder_is_no_source(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to read"):
        classify(tmp_path / "empty", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_cryosparc_job_is_judged_as_it_is_and_given_back_to_both_programs(
    settings: Settings, tmp_path: Path
) -> None:
    path = write_cs_job(tmp_path / "CS-x", n=30)
    write_stack(tmp_path / "CS-x/J19/extract/a.mrc", particles(28))
    source = open_source(path)
    assert source.uid is not None
    chosen = settings.classify.model_copy(update={"also_star": True, "score_column": True})
    settings = settings.model_copy(update={"classify": chosen})
    out = classify(tmp_path / "CS-x/J26", tmp_path / "out", settings)
    table = pq.read_table(out / "verdicts.parquet")
    assert table["uid"].to_pylist() == source.uid[:28].tolist()
    assert table["image"].to_pylist() == source.images[:28].tolist()
    quarantine = pq.read_table(out / "quarantine.parquet")
    assert quarantine["row"].to_pylist() == [29, 30]
    verdicts = np.array([*table["verdict"].to_pylist(), "quarantined", "quarantined"])
    for verdict, side in PARTITIONS.items():
        rows = np.flatnonzero(verdicts == verdict)
        assert np.load(out / f"{side}.cs")["uid"].tolist() == source.uid[rows].tolist()
        star = parse(out / f"{side}.star")["particles"]
        assert [name[:6] for name in star.column("rlnImageName")] == [f"{i + 1:06d}" for i in rows]
        assert star.columns[-1] == "rlnCryorayScore"


def test_a_page_stands_beside_the_verdicts(
    project: Path, settings: Settings, tmp_path: Path
) -> None:
    out = classify(project, tmp_path / "out", settings)
    page = (out / "report.html").read_text()
    table = pq.read_table(out / "verdicts.parquet")
    for verdict, name in (("keep", "kept"), ("discard", "discarded"), ("review", "for review")):
        count = table["verdict"].to_pylist().count(verdict)
        assert f"<dt>{name}</dt><dd>{count:,}</dd>" in page
    assert page.count("data:image/png") >= 20
    assert (out / "figures" / "scores.csv").is_file()
