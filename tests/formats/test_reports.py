"""Files as people reported them in the trackers of other programs: a small one of each, read or refused.

Each test names its report. What is held against is what its thread says is right.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from numpy.lib.recfunctions import append_fields

from cryoray.errors import FormatError
from cryoray.formats.conversion import write_star
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.relion import complaint
from cryoray.formats.source import find_sources, open_source
from cryoray.formats.star import parse
from tests.formats.files import cs_particles, write_cs, write_cs_job, write_stack

OPTICS = "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n_rlnImagePixelSize\n"


def star(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "particles.star"
    path.write_text(text)
    return path


def particles(rows: str = "1@a.mrcs 1\n2@a.mrcs 1\n") -> str:
    return f"\ndata_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n{rows}"


@pytest.mark.parametrize(
    "stamp",
    [
        b"MAP DD\0\0",
        b"MAP D\0\0\0",  # ccpem/mrcfile issue 4: SerialEM
        b"MAP D\x11\0\0",  # ccpem/mrcfile issue 7: maps of EMDB
        b"MAP\0DA\0\0",  # ccpem/mrcfile issues 14 and 19: MotionCor2
        b"MAP D   ",  # ccpem/mrcfile issue 47: IMOD
        b"\x7c\x94\xf2\xc4\x90\x42\x4d\xc3",  # ccpem/mrcfile issue 44: Amira
        b"\0\0\0\0\0\0\0\0",  # ComputationalCryoEM/ASPIRE-Python issue 544
    ],
)
def test_stacks_with_the_machine_stamps_that_programs_write(tmp_path: Path, stamp: bytes) -> None:
    path = write_stack(tmp_path / "s.mrcs", 3)
    raw = bytearray(path.read_bytes())
    raw[208:216] = stamp
    path.write_bytes(raw)
    stack = read_header(path)
    assert stack.count == 3
    assert read_frames(stack, np.arange(3))[:, 0, 0].tolist() == [0, 1, 2]


def test_the_length_of_an_extended_header_that_was_not_copied(tmp_path: Path) -> None:
    """ccpem/mrcfile issue 51 (cryoCARE): pixels begin after the header, whatever it says."""
    path = write_stack(tmp_path / "s.mrcs", 3)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<i", raw, 92, 320)
    path.write_bytes(raw)
    assert read_frames(read_header(path), np.arange(3))[:, 0, 0].tolist() == [0, 1, 2]
    path.write_bytes(raw[:1024] + bytes(320) + raw[1024:])  # and with it
    assert read_frames(read_header(path), np.arange(3))[:, 7, 7].tolist() == [0, 1, 2]


def test_a_label_that_the_optics_table_has_twice(tmp_path: Path) -> None:
    """3dem/relion issue 849: RELION counts it once, and finds a column too many."""
    optics = OPTICS + "_rlnOpticsGroup\n1 300 2.7 1.5 3\n"
    source = open_source(star(tmp_path, optics + particles()))
    assert source.pixel_size.tolist() == [1.5, 1.5]
    said = str(complaint(source))
    assert said.startswith(
        "A line in the STAR file contains more columns than the number of labels"
    )
    assert "data_optics has it twice" in said


def test_a_label_that_relion_does_not_know(tmp_path: Path) -> None:
    """asarnow/pyem issue 103, and _wrp or _ptm in place of _rln (warpem/warp 149): no reason to stop."""
    optics = OPTICS + "_rlnOpticsGroup1\n_wrpSource\n6 300 2.7 1.5 6 x\n"
    source = open_source(star(tmp_path, optics + particles("1@a.mrcs 6\n")))
    assert source.pixel_size.tolist() == [1.5]
    assert complaint(source) is None


def test_no_optics_table_under_a_line_that_says_it_is_of_relion_31(tmp_path: Path) -> None:
    """3dem/relion issue 1126: RELION will not convert what says that it is converted."""
    text = "data_particles\n\nloop_\n_rlnImageName\n1@a.mrcs\n"
    said = complaint(open_source(star(tmp_path, f"\n# version 30001\n\n{text}")))
    assert str(said).startswith("Star file is already at version 30001")
    assert complaint(open_source(star(tmp_path, f"\n# RELION; version 3.0\n\n{text}"))) is None


def test_an_image_size_that_is_not_the_stacks(tmp_path: Path) -> None:
    """3dem/relion issue 519: incorrect image size."""
    write_stack(tmp_path / "a.mrcs", 2)
    optics = OPTICS + "_rlnImageSize\n1 300 2.7 1.5 {}\n"
    said = complaint(open_source(star(tmp_path, optics.format(308) + particles())))
    assert said == "incorrect image size: rlnImageSize is 308, and the images of a.mrcs have 8 px"
    assert complaint(open_source(star(tmp_path, optics.format(8) + particles()))) is None


def test_optics_after_the_particles(tmp_path: Path) -> None:
    """ml-struct-bio/cryodrgn issue 241."""
    text = particles("1@a.mrcs 2\n2@a.mrcs 1\n") + "\n" + OPTICS + "1 300 2.7 1.5\n2 300 2.7 2.5\n"
    assert open_source(star(tmp_path, text)).pixel_size.tolist() == [2.5, 1.5]


def test_no_blank_line_between_a_table_and_its_loop(tmp_path: Path) -> None:
    """teamtomo/starfile issue 81."""
    text = (OPTICS + "1 300 2.7 1.5\n" + particles()).replace("\n\n", "\n")
    assert open_source(star(tmp_path, text)).pixel_size.tolist() == [1.5, 1.5]


def test_a_loop_without_rows_that_blank_lines_follow(tmp_path: Path) -> None:
    """teamtomo/starfile issue 70."""
    path = star(tmp_path, OPTICS + "1 300 2.7 1.5\n" + particles("") + "\n\n\n\n")
    assert len(parse(path)["particles"]) == 0
    with pytest.raises(FormatError, match="has no rows in its table data_particles"):
        open_source(path)


def test_a_single_row_after_another_table(tmp_path: Path) -> None:
    """teamtomo/starfile issue 17: nothing of one table gets into the next."""
    text = "data_a\n\nloop_\n_x\n_y\n1.0 2.0\n\n\ndata_b\n\nloop_\n_u\nA\n"
    file = parse(star(tmp_path, text))
    assert (file["a"].fields(0), file["b"].fields(0)) == (["1.0", "2.0"], ["A"])


@pytest.mark.parametrize(
    "text",
    [
        # tbepler/topaz issue 138: coordinates, no images
        "data_\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\nm.mrc 1 2\n",
        # warpem/warp issue 418: a file of which the name is missing
        "data_\n\n_rlnTomoParticlesFile   \n_rlnTomoTomogramsFile   particles_tomograms.star\n",
        # warpem/warp issue 149: labels of another program
        "data_\n\nloop_\n_wrpSourceName\n_wrpImageName\nm.mrc 1@a.mrcs\n",
    ],
)
def test_what_names_no_images_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        FormatError, match="has no column rlnImageName; give a STAR file of extracted"
    ):
        open_source(star(tmp_path, text))


def test_stacks_under_another_name_than_they_have(tmp_path: Path) -> None:
    """3dem/relion issue 288, cryosparc-issues issue 84: every row says which file is not there."""
    write_stack(tmp_path / "13_norm.mrcs.mrcs", 2)
    source = open_source(star(tmp_path, "data_\nloop_\n_rlnImageName\n1@13_norm.mrcs\n"))
    with pytest.raises(FormatError, match=r"13_norm.mrcs: there is no such stack"):
        read_header(source.stacks[0])


def test_particles_that_are_all_of_one_half(tmp_path: Path) -> None:
    """asarnow/pyem issue 44: RELION's refinement stops at a column rlnRandomSubset of nothing but 1."""
    path = write_cs_job(tmp_path)
    main, _ = cs_particles(6)
    for halves in ([0] * 6, [0, 1] * 3):
        write_cs(
            path, append_fields(main, "alignments3D/split", np.array(halves, "<u4"), usemask=False)
        )
        write_star(tmp_path / "x.star", open_source(path))
        columns = parse(tmp_path / "x.star")["particles"].columns
        assert ("rlnRandomSubset" in columns) == (len(set(halves)) == 2)


def test_alignments_of_several_classes_among_what_was_passed_through(tmp_path: Path) -> None:
    """asarnow/pyem issues 59 and 53: alignments_class_0/… of an earlier heterogeneous refinement."""
    path = write_cs_job(tmp_path)
    _, passed = cs_particles(6)
    for number in range(3):
        names = [f"alignments_class_{number}/{name}" for name in ("class_posterior", "class")]
        columns = [np.full(6, 0.5, "<f4"), np.full(6, number, "<u4")]
        passed = append_fields(passed, names, columns, usemask=False)
    write_cs(tmp_path / "J26/J26_passthrough_particles.cs", passed)
    source = open_source(path)
    assert source.metadata["rlnDefocusU"].tolist() == [15000, 15001, 15002, 15003, 15004, 15005]
    assert source.metadata["rlnClassNumber"].tolist() == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("name", ["downsampled_particles", "restacked_particles"])
def test_results_whose_tables_have_no_number_of_a_job(tmp_path: Path, name: str) -> None:
    """asarnow/pyem issue 70: Downsample Particles, Restack Particles."""
    main, passed = cs_particles(4)
    write_stack(tmp_path / "J19/extract/a.mrc", 4)
    path = write_cs(tmp_path / f"J70/{name}.cs", main)
    write_cs(tmp_path / "J70/J70_passthrough_particles.cs", passed)
    assert find_sources(tmp_path / "J70") == [path]
    assert open_source(path).metadata["rlnDefocusU"].tolist() == [15000, 15001, 15002, 15003]


def test_a_table_whose_header_is_longer_than_64_kb(tmp_path: Path) -> None:
    """ml-struct-bio/cryodrgn issue 418: after a 3D classification of a hundred classes."""
    main, _ = cs_particles(2)
    fields = [
        f"alignments_class_{n}/{name}" for n in range(400) for name in ("pose", "shift", "error")
    ]
    wide = np.zeros(2, [*main.dtype.descr, *((name, "<f4") for name in fields)])
    for name in main.dtype.names or ():
        wide[name] = main[name]
    path = tmp_path / "particles.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, wide, (2, 0), allow_pickle=False)
    path = path.rename(path.with_suffix(".cs"))
    assert path.read_bytes()[6] == 2
    assert open_source(path).frame.tolist() == [0, 1]


def test_a_table_in_a_form_of_a_version_before_it_was_final(tmp_path: Path) -> None:
    """cryoem-uoft/cryosparc-tools pull request 52: the first byte is another."""
    main, _ = cs_particles(2)
    path = write_cs(tmp_path / "particles.cs", main)
    Dataset.load(path).save(path, format=CSDAT_FORMAT)
    path.write_bytes(b"\x94" + path.read_bytes()[1:])
    with pytest.raises(
        FormatError, match="is not a cryoSPARC table: it begins like neither NPY nor CSDAT"
    ):
        open_source(path)
