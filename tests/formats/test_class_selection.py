"""A choice of classes as RELION's Select job writes it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import FormatError, InputError
from cryoray.formats.class_selection import (
    class_numbers,
    is_model,
    model_of,
    particle_counts,
    particles_of,
    read_optimiser,
    write_class_selection,
    write_ranking,
)
from cryoray.formats.selection import read_selection
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from tests.classes import COUNTS, write_class_job

KEEP = np.array([True, False, False, True, False])


def rows_of(path: Path, column: str) -> list[str]:
    """The rows of a table verbatim, by plain reading, not by ours."""
    return [line for line in path.read_text().splitlines() if re.match(rf"\d+@.*{column}", line)]


def test_kept_classes_and_their_particles_are_the_jobs_own_rows(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    model, data = job / "run_it025_model.star", job / "run_it025_data.star"
    source = open_source(model, "class2d")
    score = np.linspace(0, 1, 5, dtype=np.float32)
    written = write_class_selection(tmp_path / "out", source, KEEP, score=score)

    assert parse(tmp_path / "out/backup_selection.star")[""].column("rlnSelected").tolist() == [
        *("1", "0", "0", "1", "0")
    ]
    averages = parse(tmp_path / "out/class_averages.star")
    assert list(averages) == [""]
    assert averages[""].columns[-2:] == ("rlnPredictedClassScore", "rlnParticleNr")
    kept = [row for row, keep in zip(rows_of(model, "classes"), KEEP, strict=True) if keep]
    assert rows_of(tmp_path / "out/class_averages.star", "classes") == [
        f"{kept[0].rstrip()} 0 7",
        f"{kept[1].rstrip()} 0.75 9",
    ]

    particles = tmp_path / "out/particles.star"
    of_kept = [row for row in rows_of(data, "mic") if row.split()[-1] in ("1", "4")]
    assert rows_of(particles, "mic") == of_kept
    assert written == len(of_kept) == COUNTS[0] + COUNTS[3]
    before, _, _ = data.read_text().partition("_rlnClassNumber #7\n")
    assert particles.read_text().split()[: len(before.split())] == before.split()


def test_what_is_written_is_read_back_as_the_same_selection(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    classes = open_source(job, "class2d")
    write_class_selection(tmp_path / "out", classes, KEEP)
    labels = read_selection(tmp_path / "out/backup_selection.star", classes)
    assert labels.tolist() == KEEP.astype(int).tolist()
    assert read_selection(tmp_path / "out/class_averages.star", classes).tolist() == labels.tolist()
    particles = open_source(job)
    by_class = read_selection(tmp_path / "out/backup_selection.star", particles)
    listed = read_selection(tmp_path / "out/particles.star", particles)
    assigned = by_class >= 0
    assert listed[assigned].tolist() == by_class[assigned].tolist()
    assert (listed[~assigned] == 0).all()


def test_a_model_without_its_particles_still_gets_its_choice_of_classes(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    (job / "run_it025_data.star").unlink()
    source = open_source(job, "class2d")
    assert write_class_selection(tmp_path / "out", source, KEEP) is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "backup_selection.star",
        "class_averages.star",
    ]
    assert "rlnParticleNr" not in parse(tmp_path / "out/class_averages.star")[""].columns


def test_nothing_kept_is_written_as_tables_without_rows(tmp_path: Path) -> None:
    source = open_source(write_class_job(tmp_path), "class2d")
    assert write_class_selection(tmp_path / "out", source, np.zeros(5, bool)) == 0
    assert len(parse(tmp_path / "out/class_averages.star")[""]) == 0
    assert len(parse(tmp_path / "out/particles.star")["particles"]) == 0


def test_a_ranking_names_its_own_files_and_scores_every_class(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    optimiser = read_optimiser(job / "run_it025_optimiser.star")
    assert optimiser.model == job / "run_it025_model.star"
    assert optimiser.data == job / "run_it025_data.star"
    out = tmp_path / "Select/job003"
    score = np.array([0.1, 2 / 3, 0, 1, 0.5], np.float32)
    write_ranking(out, "rank", optimiser, score, "Select/job003/")

    classes = parse(out / "rank_model.star")["model_classes"]
    assert np.array_equal(classes.numbers("rlnClassScore").astype(np.float32), score)
    assert [row.rpartition(" ")[0] for row in rows_of(out / "rank_model.star", "classes")] == [
        row.rstrip() for row in rows_of(job / "run_it025_model.star", "classes")
    ]
    assert rows_of(out / "rank_data.star", "mic") == rows_of(job / "run_it025_data.star", "mic")
    text = (out / "rank_optimiser.star").read_text()
    assert re.search(r"^_rlnModelStarFile +Select/job003/rank_model\.star$", text, re.MULTILINE)
    assert re.search(r"^_rlnOutputRootName +Class2D/job002/run$", text, re.MULTILINE)
    assert '_rlnTomoTomogramsFile                 ""' in text
    ranked = read_optimiser(out / "rank_optimiser.star")
    assert ranked[1:] == (out / "rank_model.star", out / "rank_data.star")


def test_an_optimiser_that_names_nothing_is_refused(tmp_path: Path) -> None:
    star = tmp_path / "optimiser.star"
    star.write_text("data_optimiser_general\n\n_rlnModelStarFile run_it025_model.star\n")
    with pytest.raises(FormatError, match="names no rlnExperimentalDataStarFile"):
        read_optimiser(star)


def test_model_and_particles_of_an_iteration_find_each_other(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    model, data = job / "run_it025_model.star", job / "run_it025_data.star"
    assert particles_of(model) == data
    assert model_of(data) == model
    assert particles_of(data) is None
    model.unlink()
    with pytest.raises(InputError, match=r"has no \*_model\.star of its classes beside it"):
        model_of(data)


def test_only_all_classes_of_a_job_have_class_numbers_as_places(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    source = open_source(job, "class2d")
    write_class_selection(tmp_path / "out", source, KEEP)
    assert is_model(source)
    assert not is_model(open_source(tmp_path / "out/class_averages.star", "class2d"))
    assert not is_model(open_source(job / "run_it025_classes.mrcs", "class2d"))
    assert not is_model(open_source(job))


@pytest.mark.real
def test_a_selection_of_a_relion_5_job_adds_up(real_data: Path, tmp_path: Path) -> None:
    job = real_data / "relion5-project/Class2D/job010"
    source = open_source(job, "class2d")
    keep = np.arange(50) % 3 == 1
    written = write_class_selection(tmp_path, source, keep)
    numbers = [int(row.split()[3]) for row in _data_rows(job / "run_it025_data.star")]
    counts = particle_counts(np.array(numbers), 50)
    assert counts.sum() == 2374
    assert written == counts[keep].sum() > 0
    averages = parse(tmp_path / "class_averages.star")[""]
    assert averages.numbers("rlnParticleNr").tolist() == counts[keep].tolist()
    kept = [row for row in _data_rows(job / "run_it025_data.star") if keep[int(row.split()[3]) - 1]]
    assert _data_rows(tmp_path / "particles.star") == kept
    again = class_numbers(parse(tmp_path / "particles.star"))
    assert again is not None
    assert set(again) <= set(np.flatnonzero(keep) + 1)


def _data_rows(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "@Extract" in line]
