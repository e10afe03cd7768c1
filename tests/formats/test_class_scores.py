"""Graded classes, as EMPIAR-10812 has them: on a small copy of its layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import SelectionError
from cryoray.formats.mrc import StackWriter
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import find_sources, open_source
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import Settings
from cryoray.verbs.ingest import ingest

#: Of each class: red, magenta, green, blue, cyan, yellow, no colour.
GRADES = (1, 5, 2, 3, 4, 6, 0)
KEPT = [1, 1, 0, 0, 0, 0, 0]
JOBS = {"cahg4Zo4Goos": 0.9, "eet7Ahf8ieGh": 0.4}


def averages(count: int, side: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) - side // 2
    spot = np.exp(-(x**2 + y**2) / (2 * (side / 6) ** 2))
    return (rng.normal(0, 0.1, (count, side, side)) + spot).astype(np.float32)


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """Two jobs of seven classes, with the table of features of both."""
    folder = tmp_path / "10812"
    rows = []
    for number, (job, score) in enumerate(JOBS.items()):
        (folder / job).mkdir(parents=True)
        with StackWriter(folder / job / "run_class.mrcs", 64, 64, "float32", 3.5) as writer:
            writer.append(averages(len(GRADES), 64, number))
        # The model names the averages as they were called in the job that it was copied from.
        lines = "".join(
            f"{i:06d}@Class2D/job012/run_it025_classes.mrcs 0.1 {8 + i}.0\n"
            for i in range(1, len(GRADES) + 1)
        )
        (folder / job / "run_model.star").write_text(
            "data_model_general\n\n_rlnPixelSize 3.5\n_rlnReferenceDimensionality 2\n\n"
            "data_model_classes\n\nloop_\n_rlnReferenceImage #1\n_rlnClassDistribution #2\n"
            f"_rlnEstimatedResolution #3\n{lines}\n"
        )
        grades = "".join(f"{grade}\n" for grade in GRADES)
        (folder / job / "backup_selection.star").write_text(
            f"data_\n\nloop_\n_rlnSelected #1\n{grades}\n"
        )
        (folder / job / "job_score.txt").write_text(f"{score}\n")
        for i, part in enumerate((1.0, 0.6, 0.3, 0.1, 0.1, 0.0, 0.0), 1):
            name = f"{job}/subimages_class{i:06d}.mrcs"
            with StackWriter(folder / name, 64, 64, "float32", 3.5) as writer:
                writer.append(averages(1, 64, 10 * number + i))
            vector = ",".join(f"{value:.3f}" for value in np.linspace(-1, 1, 24))
            # The last class has ten particles or fewer, which RELION gives no score.
            given = -1 if i == len(GRADES) else part * score
            rows.append(f"{i:06d}@{job}/run_class.mrcs {given:.4f} {name} [{vector}]\n")
    head = ("ReferenceImage", "ClassScore", "SubImageStack", "NormalizedFeatureVector")
    columns = "".join(f"_rln{name} #{i}\n" for i, name in enumerate(head, 1))
    (folder / "normalised_features.star").write_text(
        f"\n# version 30001\n\ndata_normalized_features\n\nloop_\n{columns}{''.join(rows)}\n"
    )
    return folder


def test_each_job_is_a_source_with_its_grades_as_its_selection(entry: Path) -> None:
    found = find_sources(entry, "class2d")
    assert [path.relative_to(entry).as_posix() for path in found] == [
        f"{job}/run_model.star" for job in JOBS
    ]
    for path in found:
        source = open_source(path, "class2d")
        assert source.stacks == (path.with_name("run_class.mrcs"),)
        selection = find_selection(path)
        assert selection == path.with_name("backup_selection.star")
        assert read_selection(selection, source).tolist() == KEPT


def test_colours_that_are_no_grades_keep_their_meaning(entry: Path) -> None:
    path = entry / "cahg4Zo4Goos/run_model.star"
    path.with_name("job_score.txt").unlink()
    source = open_source(path, "class2d")
    assert read_selection(path.parent, source).tolist() == [1, 1, 1, 1, 1, 1, 0]


def test_the_table_of_features_labels_the_classes_of_its_jobs_by_their_scores(entry: Path) -> None:
    table = entry / "normalised_features.star"
    for job in JOBS:  # also the job with the low score has classes that a person would take
        source = open_source(entry / job / "run_model.star", "class2d")
        assert read_selection(table, source).tolist() == [*KEPT[:-1], -1]


def test_the_table_of_features_is_a_source_of_the_images_cut_for_relions_network(
    entry: Path,
) -> None:
    table = entry / "normalised_features.star"
    for stack in entry.glob("*/run_class.mrcs"):
        stack.unlink()
    source = open_source(table, "class2d")
    assert find_selection(table) == table
    assert read_selection(table, source).tolist() == [*KEPT[:-1], -1] * 2
    assert source.stacks[0] == entry / "cahg4Zo4Goos/subimages_class000001.mrcs"
    # A job is what must not be split, and nothing else in the table says which it is.
    assert source.micrograph.tolist() == [job for job in JOBS for _ in GRADES]


def test_a_table_without_scores_is_no_selection(entry: Path) -> None:
    table = entry / "normalised_features.star"
    table.write_text(table.read_text().replace("rlnClassScore", "rlnOther"))
    source = open_source(table, "class2d")
    assert find_selection(table) is None
    with pytest.raises(SelectionError, match="has no column rlnClassScore"):
        read_selection(table, source)


@pytest.mark.parametrize("given", [".", "normalised_features.star"])
def test_the_entry_is_ingested(entry: Path, tmp_path: Path, given: str) -> None:
    settings = Settings(ingest={"kind": "class2d", "preparation": {"box": 32}})
    made = PreparedSet.open(ingest([entry / given], tmp_path / "set", settings))
    table = made.table.to_pydict()
    assert made.n == 14
    assert table["label"].count(1) == 4
    groups = table["project"] if given == "." else table["micrograph"]
    assert sorted(set(groups)) == sorted(JOBS)
