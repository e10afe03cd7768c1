"""Every STAR file that is written here, held against what RELION 3.1, 4 and 5 ask of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.class_selection import read_optimiser, write_class_selection, write_ranking
from cryoray.formats.conversion import write_star
from cryoray.formats.source import open_source
from cryoray.formats.subset import write_star as write_subset
from cryoray.formats.verdicts import PARTITIONS, write_verdicts
from tests.classes import write_class_job
from tests.examples import verdicts_of
from tests.formats.files import write_cs_job, write_stack
from tests.formats.relion_rules import VERSIONS, Version, What, violations

FATES = tuple(PARTITIONS)


def none(path: Path, what: What = "table", versions: tuple[Version, ...] = VERSIONS) -> None:
    for version in versions:
        assert violations(path, version, what) == [], (path.name, version)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A RELION Class2D job in a project of its own."""
    return write_class_job(tmp_path / "project")


def test_the_sides_of_particles(job: Path, tmp_path: Path) -> None:
    source = open_source(job / "run_it025_data.star")
    fates = [FATES[row % 4] for row in range(len(source))]
    write_verdicts(tmp_path / "out", source, verdicts_of(fates), star_columns=("score",))
    for name in PARTITIONS.values():
        none(tmp_path / f"out/{name}.star", "particles")


def test_a_side_without_rows_and_one_of_a_particle_without_a_loop(
    job: Path, tmp_path: Path
) -> None:
    text = (job / "run_it025_data.star").read_text()
    head = text[: text.index("data_particles")]
    path = tmp_path / "one.star"
    path.write_text(
        head + "data_particles\n\n_rlnImageName 1@x.mrcs\n_rlnMicrographName 'My Grid/m.mrc'\n"
        "_rlnOpticsGroup 1\n_rlnDefocusU 9000\n"
    )
    write_verdicts(
        tmp_path / "out", open_source(path), verdicts_of(["keep"]), star_columns=("score",)
    )
    for name in PARTITIONS.values():
        none(tmp_path / f"out/{name}.star", "particles")


def test_the_sides_of_cryosparcs_particles(tmp_path: Path) -> None:
    source = open_source(write_cs_job(tmp_path / "CS-x"))
    fates = [FATES[row % 4] for row in range(len(source))]
    write_verdicts(
        tmp_path / "out", source, verdicts_of(fates), also_star=True, star_columns=("score",)
    )
    for name in PARTITIONS.values():
        none(tmp_path / f"out/{name}.star", "particles")
    write_star(tmp_path / "all.star", source)
    none(tmp_path / "all.star", "particles")
    classes = open_source(tmp_path / "CS-x/J26", "class2d")
    write_star(tmp_path / "classes.star", classes)
    none(tmp_path / "classes.star", "classes")


def test_the_sides_of_a_stack_lack_what_no_header_tells_and_nothing_else(tmp_path: Path) -> None:
    write_stack(tmp_path / "a b/it's.mrcs", 3)
    source = open_source(tmp_path / "a b/it's.mrcs")
    write_verdicts(tmp_path / "out", source, verdicts_of(["keep", "discard", "keep"]))
    for version in VERSIONS:
        for name in ("kept", "discarded"):
            assert violations(tmp_path / f"out/{name}.star", version, "particles") == [
                "no rlnVoltage in data_optics",
                "no rlnSphericalAberration in data_optics",
            ]


def test_a_choice_of_classes(job: Path, tmp_path: Path) -> None:
    source = open_source(job / "run_it025_model.star", "class2d")
    keep = np.arange(len(source)) % 2 == 0
    write_class_selection(tmp_path, source, keep, score=np.linspace(0, 1, len(source)))
    none(tmp_path / "backup_selection.star", "selection")
    none(tmp_path / "class_averages.star", "classes")
    none(tmp_path / "particles.star", "particles")
    fates = ["keep" if kept else "discard" for kept in keep.tolist()]
    write_verdicts(tmp_path / "out", source, verdicts_of(fates))
    for name in PARTITIONS.values():
        none(tmp_path / f"out/{name}.star", "classes")


def test_a_ranking(job: Path, tmp_path: Path) -> None:
    optimiser = read_optimiser(job / "run_it025_optimiser.star")
    write_ranking(tmp_path, "rank", optimiser, np.linspace(0, 1, 5, dtype=np.float32))
    none(tmp_path / "rank_optimiser.star", "optimiser")
    none(tmp_path / "rank_model.star")
    none(tmp_path / "rank_data.star", "particles")


def test_some_particles_under_other_names(job: Path, tmp_path: Path) -> None:
    source = open_source(job / "run_it025_data.star")
    write_subset(
        tmp_path / "some.star", source, np.array([1, 3]), ["000001@a b.mrcs", "000002@a b.mrcs"]
    )
    none(tmp_path / "some.star", "particles")


GOOD = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnImagePixelSize #5
_rlnImageSize #6
first 1 300 2.7 1.5 64

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
000001@a.mrcs 1 9000.0
'000002@My Grid/a.mrcs' 1 nan
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "", None),
        ("# version 30001", "# version 50001", "version 50001, newer than RELION 3.1"),
        ("\n", "\r\n", "CR in a line end"),
        ("'000002@My Grid/a.mrcs'", "000002@My Grid/a.mrcs", "4 fields for 3 labels"),
        ("'000002@My Grid/a.mrcs'", "'000002@My  Grid/a.mrcs'", "two blanks in a name"),
        ("a.mrcs' 1", "a.mrcs 1", "a quote that does not end"),
        ("9000.0\n", "9000.0\n\n", "a row of data_particles after a blank line"),
        ("9000.0", "9000,0", "rlnDefocusU is '9000,0'"),
        ("first 1 300", "first 1.0 300", "rlnOpticsGroup is '1.0'"),
        ("000001@", "000000@", "image '000000@a.mrcs'"),
        ("000001@a.mrcs", "000001@a.mrc", "a.mrc is no stack to RELION without :mrcs"),
        ("_rlnVoltage #3", "_rlnOther #3", "no rlnVoltage in data_optics"),
        ("_rlnImageSize #6", "_rlnVoltage #6", "rlnVoltage twice in data_optics"),
        ("a.mrcs 1 9000", "a.mrcs 2 9000", "groups ['2'] that are not in data_optics"),
        ("data_particles", "data_images", "no table data_particles"),
        ("a.mrcs 1 9000", f"{'x' * 256}.mrcs 1 9000", "a path of 261 characters"),
    ],
)
def test_the_rules_find_what_relion_would_stop_at(
    tmp_path: Path, before: str, after: str, said: str | None
) -> None:
    path = tmp_path / "x.star"
    assert before in GOOD
    path.write_bytes(GOOD.replace(before, after).encode() if before else GOOD.encode())
    found = violations(path, "3.1", "particles")
    assert found == [] if said is None else any(each.startswith(said) for each in found)
