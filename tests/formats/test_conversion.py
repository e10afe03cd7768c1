"""cryoSPARC's particles as RELION reads them: each conversion that people get wrong."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from cryoray.errors import FormatError
from cryoray.formats.conversion import write_star
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.source import Source, open_source
from cryoray.formats.star import parse
from tests.formats.files import cs_particles, write_cs, write_cs_job, write_stack


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Six particles of two exposure groups, 23 and 24, in a stack named .mrc."""
    return open_source(write_cs_job(tmp_path / "CS-x"))


def converted(source: Source, tmp_path: Path, rows: list[int] | None = None) -> dict[str, Any]:
    write_star(tmp_path / "x.star", source, None if rows is None else np.array(rows))
    return starfile.read(tmp_path / "x.star", always_dict=True)


def test_images_count_from_one_and_a_stack_named_mrc_is_called_one(
    source: Source, tmp_path: Path
) -> None:
    names = converted(source, tmp_path, [0, 5])["particles"]["rlnImageName"].tolist()
    stack = tmp_path / "CS-x/J19/extract/a.mrc"
    assert names == [f"000001@{stack}:mrcs", f"000006@{stack}:mrcs"]
    again = open_source(tmp_path / "x.star")
    assert (again.stacks, again.frame.tolist()) == ((stack,), [0, 5])


def test_optics_groups_count_from_one_alike_on_every_side(source: Source, tmp_path: Path) -> None:
    whole = converted(source, tmp_path)
    assert whole["optics"]["rlnOpticsGroup"].tolist() == [1, 2]
    assert whole["optics"]["rlnOpticsGroupName"].tolist() == ["exposureGroup23", "exposureGroup24"]
    assert whole["particles"]["rlnOpticsGroup"].tolist() == [1, 2, 1, 2, 1, 2]
    part = converted(source, tmp_path, [3])
    assert part["optics"].equals(whole["optics"])
    assert part["particles"]["rlnOpticsGroup"].tolist() == [2]


def test_particles_of_one_exposure_group_and_two_pixel_sizes_are_two_optics_groups(
    tmp_path: Path,
) -> None:
    path = write_cs_job(tmp_path)
    main, _ = cs_particles(6)
    main["blob/psize_A"][4:] = 2.0
    whole = converted(open_source(write_cs(path, main)), tmp_path)
    assert whole["optics"]["rlnImagePixelSize"].tolist() == [1.5, 2.0, 1.5, 2.0]
    assert whole["particles"]["rlnOpticsGroup"].tolist() == [1, 3, 1, 3, 2, 4]


def test_the_optics_table_has_all_that_relion_asks_for(source: Source, tmp_path: Path) -> None:
    optics = converted(source, tmp_path)["optics"].iloc[0]
    expected = {
        "rlnVoltage": 300,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnImagePixelSize": 1.5,
        "rlnMicrographPixelSize": 0.75,
        "rlnImageSize": 8,
        "rlnImageDimensionality": 2,
        "rlnCtfDataAreCtfPremultiplied": 0,
    }
    assert {name: optics[name] for name in expected} == pytest.approx(expected)
    assert "rlnBeamTiltX" not in optics


def test_rows_whose_path_no_star_file_can_hold_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main, passed = cs_particles(3)
    main["blob/path"][1] = b"J19/d' \" e.mrc"
    passed["location/micrograph_path"] = b"J2/d' \" e.mrc"
    write_cs(tmp_path / "J20/J20_passthrough_particles.cs", passed)
    source = open_source(write_cs(tmp_path / "J20/J20_particles.cs", main))
    whole = converted(source, tmp_path)["particles"]
    assert [name[:6] for name in whole["rlnImageName"]] == ["000001", "000003"]
    assert "x.star has 1 rows less than were chosen" in caplog.text
    assert "both kinds of quotes" in caplog.text


def test_beam_tilt_becomes_milliradians(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path)
    _, passed = cs_particles(6)
    passed["ctf/tilt_A"] = (2.7e7 * np.sin(0.5e-3), -2.7e7 * np.sin(1e-3))
    write_cs(path.parent / "J26_passthrough_particles.cs", passed)
    optics = converted(open_source(path), tmp_path)["optics"]
    assert optics["rlnBeamTiltX"].tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    assert optics["rlnBeamTiltY"].tolist() == pytest.approx([-1, -1], abs=1e-5)


def test_radians_become_degrees_and_pixels_angstroms(source: Source, tmp_path: Path) -> None:
    row = converted(source, tmp_path)["particles"].iloc[0]
    expected = {
        "rlnDefocusU": 15000,
        "rlnDefocusV": 14000,
        "rlnDefocusAngle": -45,
        "rlnPhaseShift": 60,
        "rlnAnglePsi": 90,
        "rlnOriginXAngst": 3,  # pixels of the alignment (3 Å), not of the image (1.5 Å)
        "rlnOriginYAngst": -6,
        "rlnClassNumber": 1,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_coordinates_are_pixels_from_the_top(source: Source, tmp_path: Path) -> None:
    row = converted(source, tmp_path)["particles"].iloc[0]
    assert (row["rlnCoordinateX"], row["rlnCoordinateY"]) == pytest.approx((1500, 3600), abs=1e-2)
    assert row["rlnMicrographName"] == "J2/m0.mrc"


def test_what_does_not_carry_over_is_said_in_the_file(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path)
    _, passed = cs_particles(6)
    passed["ctf/trefoil_A"][2] = 5
    write_cs(path.parent / "J26_passthrough_particles.cs", passed)
    converted(open_source(path), tmp_path)
    text = (tmp_path / "x.star").read_text()
    assert text.startswith(
        "# not carried over from cryoSPARC: ctf/trefoil_A\n# cryoSPARC says that"
    )
    assert "protein is dark in these images" in text.splitlines()[1]
    assert list(parse(tmp_path / "x.star")) == ["optics", "particles"]


def test_without_optics_it_is_refused_in_relions_words(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path)
    (path.parent / "J26_passthrough_particles.cs").unlink()
    with pytest.raises(
        FormatError, match=r"not all necessary variables defined .*: rlnVoltage, rlnSph"
    ):
        write_star(tmp_path / "x.star", open_source(path))
    assert not (tmp_path / "x.star").exists()


def test_classes_become_the_table_that_relions_select_job_writes(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path)
    write_star(tmp_path / "x.star", open_source(path.parent, "class2d"), np.array([1]))
    table = parse(tmp_path / "x.star")[""]
    stack = path.parent / "J26_020_class_averages.mrc"
    assert table.fields(0) == [f"000002@{stack}:mrcs", "0.333333", "9.000000"]


@pytest.mark.system
def test_relion_stacks_the_same_images(tmp_path: Path) -> None:
    if shutil.which("relion_stack_create") is None:
        pytest.skip("no RELION here")
    path = write_cs_job(tmp_path)
    write_stack(tmp_path / "J19/extract/a.mrc", 6, side=8)
    write_star(tmp_path / "x.star", open_source(path), np.array([1, 3]))
    subprocess.run(
        ["relion_stack_create", "--i", "x.star", "--o", "made"],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    images = read_frames(read_header(tmp_path / "made.mrcs"), np.arange(2))
    assert images[:, 0, 0].tolist() == [1, 3]
