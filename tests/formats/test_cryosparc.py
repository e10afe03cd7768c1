"""cryoSPARC's jobs as sources: joined, resolved, in RELION's units; and as selections of one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.lib.recfunctions import repack_fields
from scipy.spatial.transform import Rotation

from cryoray.errors import FormatError, InputError, SelectionError
from cryoray.formats.cryosparc import euler_angles
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import find_sources, open_source
from tests.formats.files import (
    PASSTHROUGH_FIELDS,
    cs_particles,
    write_cs,
    write_cs_job,
    write_particles,
    write_stack,
)


def test_a_jobs_last_particles_joined_with_what_was_passed_through(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path / "CS-betagal")
    assert find_sources(tmp_path / "CS-betagal/J26") == [path]
    source = open_source(tmp_path / "CS-betagal/J26")
    assert (source.format, source.kind, source.name) == ("cs", "particle", "CS-betagal")
    assert source.stacks == (tmp_path / "CS-betagal/J19/extract/a.mrc",)
    assert source.frame.tolist() == [0, 1, 2, 3, 4, 5]
    assert source.images[1] == "000002@J19/extract/a.mrc"
    assert source.micrograph.tolist() == ["J2/m0.mrc", "J2/m1.mrc"] * 3
    main, _ = cs_particles(6)
    assert source.uid is not None
    assert source.uid.tolist() == main["uid"].tolist()
    assert not source.problems
    expected = {
        "rlnVoltage": 300,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnDefocusU": [15000, 15001, 15002, 15003, 15004, 15005],  # joined by uid, not by row
        "rlnDefocusAngle": -45,
        "rlnPhaseShift": 60,
        "rlnImagePixelSize": 1.5,
        "rlnMicrographPixelSize": 0.75,
        "rlnImageSize": 8,
        "rlnClassNumber": [1, 2, 3, 1, 2, 3],
        "rlnOpticsGroup": [24, 25, 24, 25, 24, 25],
        "micrographWidth": 6000,
        "micrographHeight": 4000,
        "rlnCoordinateX": 1500,
        "rlnCoordinateY": 3600,  # a tenth from the bottom is nine tenths from the top
        "rlnAnglePsi": 90,
        "rlnOriginXAngst": 3,
        "rlnOriginYAngst": -6,
        "alignments2D/error": [10, 11, 12, 13, 14, 15],
        "pick_stats/ncc_score": [0, 0.1, 0.2, 0.3, 0.4, 0.5],
    }
    for name, values in expected.items():
        assert source.metadata[name].dtype == np.float64
        np.testing.assert_allclose(source.metadata[name], np.resize(np.array(values), 6), rtol=1e-6)
    assert source.pixel_size.tolist() == [1.5] * 6


def test_the_csdat_form_is_the_same_source(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path)
    before = open_source(path)
    for file in (path, tmp_path / "J26/J26_passthrough_particles.cs"):
        Dataset.load(file).save(file, format=CSDAT_FORMAT)
    after = open_source(path)
    assert after.images.tolist() == before.images.tolist()
    assert after.micrograph.tolist() == before.micrograph.tolist()
    assert after.metadata.keys() == before.metadata.keys()
    for name, values in before.metadata.items():
        np.testing.assert_array_equal(after.metadata[name], values)


def test_a_row_that_was_not_passed_through_has_no_metadata_from_there(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path)
    _, passed = cs_particles(6)
    write_cs(tmp_path / "J26/J26_passthrough_particles.cs", passed[1:])
    source = open_source(path)
    assert np.isnan(source.metadata["rlnDefocusU"]).tolist() == [False] * 5 + [True]
    assert source.micrograph[5] == ""
    assert not source.problems
    # And where it is the images that are passed through, the row names none.
    main, _ = cs_particles(6)
    blobs = ["uid", "blob/path", "blob/idx", "blob/shape", "blob/psize_A", "blob/sign"]
    rest = [name for name in main.dtype.names or () if name == "uid" or name not in blobs]
    write_cs(tmp_path / "J27/J27_particles.cs", repack_fields(main[rest]))
    write_cs(tmp_path / "J27/J27_passthrough_particles.cs", repack_fields(main[blobs][1:]))
    source = open_source(tmp_path / "J27")
    assert source.problems == {0: "has no row in the table that says where the images are"}
    assert source.stack.tolist() == [-1, 0, 0, 0, 0, 0]


def test_an_exported_group_is_opened_by_its_csg_and_by_its_table(tmp_path: Path) -> None:
    main, passed = cs_particles(4, ">J1/imported/a.mrcs")
    write_cs(tmp_path / "J9_particles_exported.cs", main)
    write_cs(tmp_path / "locations.cs", passed)
    (tmp_path / "raw").mkdir()
    write_stack(tmp_path / "raw/a.mrcs", 4)
    (tmp_path / "J1/imported").mkdir(parents=True)
    (tmp_path / "J1/imported/a.mrcs").symlink_to(tmp_path / "raw/a.mrcs")
    group = tmp_path / "J9_particles_exported.csg"
    group.write_text(
        "group: {name: particles, type: particle}\nresults:\n"
        "  blob: {metafile: '>J9_particles_exported.cs', num_items: 4, type: particle.blob}\n"
        "  ctf: {metafile: '>locations.cs', num_items: 4, type: particle.ctf}\nversion: v4.4.1\n"
    )
    for path in (group, tmp_path / "J9_particles_exported.cs"):
        source = open_source(path)
        assert source.images[0] == "000001@J1/imported/a.mrcs"
        assert source.stacks == (tmp_path / "J1/imported/a.mrcs",)
        assert source.metadata["rlnDefocusU"].tolist() == [15000, 15001, 15002, 15003]
    group.write_text("group: [")
    with pytest.raises(FormatError, match="is not a group of cryoSPARC results"):
        open_source(group)


def test_class_averages_have_resolution_and_the_share_of_the_jobs_particles(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path, n=7)
    source = open_source(path.parent, "class2d")
    assert source.path.name == "J26_020_class_averages.cs"
    assert source.images[2] == "000003@J26/J26_020_class_averages.mrc"
    assert source.metadata["rlnEstimatedResolution"].tolist() == [8, 9, 30]
    np.testing.assert_allclose(source.metadata["rlnClassDistribution"], [3 / 7, 2 / 7, 2 / 7])
    assert source.metadata["rlnClassNumber"].tolist() == [1, 2, 3]
    with pytest.raises(
        FormatError, match="images of kind class2d, not particle; give --kind class2d"
    ):
        open_source(source.path)


@pytest.fixture
def select(tmp_path: Path) -> Path:
    """A Select 2D job after J26 of nine particles: classes 1 and 2 selected, 3 excluded."""
    path = write_cs_job(tmp_path, n=9)
    main, passed = cs_particles(9)
    classes = np.load(tmp_path / "J26/J26_020_class_averages.cs")
    keep = main["alignments2D/class"] < 2
    folder = tmp_path / "J30"
    for word, rows in (("selected", keep), ("excluded", ~keep)):
        write_cs(folder / f"particles_{word}.cs", main[rows])
        write_cs(folder / f"J30_passthrough_particles_{word}.cs", passed[rows[::-1]])
    write_cs(folder / "templates_selected.cs", classes[:2])
    write_cs(folder / "templates_excluded.cs", classes[2:])
    assert path.is_file()
    return folder


def test_select_2d_labels_the_particles_and_classes_that_it_was_given(select: Path) -> None:
    source = open_source(select.parent / "J26")
    expected = [1, 1, 0] * 3
    for selection in (select, select / "particles_selected.cs", select / "particles_excluded.cs"):
        assert read_selection(selection, source).tolist() == expected
    assert read_selection(select / "templates_selected.cs", source).tolist() == expected
    classes = open_source(select.parent / "J26", "class2d")
    assert read_selection(select, classes).tolist() == [1, 1, 0]
    (select / "particles_excluded.cs").unlink()
    assert read_selection(select / "particles_selected.cs", source).tolist() == expected
    main, _ = cs_particles(9)
    write_cs(select / "particles_excluded.cs", main[2:3])  # a row that is in neither has no label
    assert read_selection(select, source).tolist() == [1, 1, 0, 1, 1, -1, 1, 1, -1]


def test_a_select_2d_job_is_two_sources_with_their_labels(select: Path) -> None:
    found = find_sources(select)
    assert [path.name for path in found] == ["particles_excluded.cs", "particles_selected.cs"]
    labels = []
    for path in found:
        selection = find_selection(path)
        assert selection is not None
        labels.append(read_selection(selection, open_source(path)).tolist())
        assert open_source(path).metadata["rlnDefocusU"][0] >= 15000
    assert labels == [[0] * 3, [1] * 6]
    classes = [open_source(path, "class2d") for path in find_sources(select, "class2d")]
    assert [each.images.tolist()[0][:6] for each in classes] == ["000003", "000001"]
    np.testing.assert_allclose(classes[1].metadata["rlnClassDistribution"], [1 / 3, 1 / 3])


def test_a_cs_selection_labels_a_star_file_of_the_same_images(tmp_path: Path) -> None:
    write_stack(tmp_path / "J19/extract/a.mrcs", 3)
    names = [f"{i}@J19/extract/a.mrcs" for i in (3, 2, 1)]
    source = open_source(write_particles(tmp_path / "particles.star", names))
    main, _ = cs_particles(3, "J19/extract/a.mrcs")
    assert read_selection(write_cs(tmp_path / "kept.cs", main[:1]), source).tolist() == [0, 0, 1]
    other, _ = cs_particles(3, "J20/extract/a.mrcs")
    with pytest.raises(SelectionError, match="none of its 1 rows is an image of"):
        read_selection(write_cs(tmp_path / "other.cs", other[:1]), source)


PART = ["uid", "blob/path", "blob/idx", "blob/shape", "blob/psize_A", "blob/sign"]


def split_job(folder: Path, main: str, passed: str, rows: slice = slice(None), n: int = 6) -> Path:
    """A result whose images were passed through, in another order, as 3D jobs have it."""
    table, _ = cs_particles(n)
    rest = [name for name in table.dtype.names or () if name == "uid" or name not in PART]
    write_stack(folder.parent / "J19/extract/a.mrc", n)
    write_cs(folder / f"{passed}.cs", repack_fields(table[rows][PART][::-1]))
    return write_cs(folder / f"{main}.cs", repack_fields(table[rest][rows]))


EVEN, ODD, ALL = slice(0, None, 2), slice(1, None, 2), slice(None)


def test_a_class_of_a_heterogeneous_refinement_is_joined_with_what_was_passed_through_for_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "J14"
    for iteration in ("00040", "00062"):
        for number, rows in ((0, EVEN), (1, ODD)):
            split_job(
                folder,
                f"J14_class_0{number}_{iteration}_particles",
                f"J14_passthrough_particles_class_{number}",
                rows,
            )
        split_job(folder, f"J14_{iteration}_particles", "J14_passthrough_particles_all_classes")
    for number, expected in ((0, [0, 2, 4]), (1, [1, 3, 5])):
        source = open_source(folder / f"J14_class_0{number}_00062_particles.cs")
        assert source.frame.tolist() == expected
        assert not source.problems
    # The folder is the particles of all classes, of the last iteration.
    assert find_sources(folder) == [folder / "J14_00062_particles.cs"]
    assert open_source(folder).frame.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("prefix", ["", "cryosparc_P3_", "P3_"])
def test_ab_initio_keeps_the_final_particles_of_each_class(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "J12"
    for number, rows in ((0, EVEN), (1, ODD)):
        for iteration in ("00300", "final"):
            split_job(
                folder,
                f"{prefix}J12_class_0{number}_{iteration}_particles",
                f"{prefix}J12_passthrough_particles_class_{number}",
                rows,
            )
    found = find_sources(folder)
    assert [path.name for path in found] == [
        f"{prefix}J12_class_0{number}_final_particles.cs" for number in (0, 1)
    ]
    assert [open_source(path).frame.tolist() for path in found] == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("mains", "passed"),
    [
        # clusters of 3D variability, sets, rebalanced classes, subsets: the job's own words
        (["J31_cluster_000_particles", "J31_cluster_001_particles"], ["cluster_0", "cluster_1"]),
        (["split_0", "split_1"], ["split_0", "split_1"]),
        (["particles_rebalanced", "J40_superclass_1"], ["rebalanced", "superclass_1"]),
        (["J50_subset_0_particles", "J50_subset_1_particles"], ["A", "B"]),
    ],
)
def test_where_names_do_not_tell_what_belongs_together_the_uid_do(
    tmp_path: Path, mains: list[str], passed: list[str]
) -> None:
    folder = tmp_path / "J50"
    for main, through, rows in zip(mains, passed, (EVEN, ODD), strict=True):
        split_job(folder, main, f"J50_passthrough_particles_{through}", rows)
    found = find_sources(folder)
    assert [path.stem for path in found] == sorted(mains)
    for main, expected in zip(mains, ([0, 2, 4], [1, 3, 5]), strict=True):
        source = open_source(folder / f"{main}.cs")
        assert source.frame.tolist() == expected
        assert not source.problems


def test_a_result_with_a_table_for_each_group_of_fields_is_one_source(tmp_path: Path) -> None:
    main, passed = cs_particles(4)
    write_stack(tmp_path / "J19/extract/a.mrc", 4)
    classes = [name for name in main.dtype.names or () if name == "uid" or name[:5] == "align"]
    defocus = [name for name in passed.dtype.names or () if name == "uid" or name[:3] == "ctf"]
    folder = tmp_path / "J60"
    write_cs(folder / "J60_particles_alignments2D.cs", repack_fields(main[classes]))
    write_cs(folder / "J60_particles_blob.cs", repack_fields(main[PART]))
    write_cs(folder / "J60_particles_ctf.cs", repack_fields(passed[defocus]))
    assert find_sources(folder) == [folder / "J60_particles_blob.cs"]
    source = open_source(folder)
    assert source.frame.tolist() == [0, 1, 2, 3]
    assert source.metadata["rlnDefocusU"].tolist() == [15000, 15001, 15002, 15003]
    assert source.metadata["rlnClassNumber"].tolist() == [1, 2, 3, 1]
    assert open_source(folder / "J60_particles_ctf.cs").frame.tolist() == [3, 2, 1, 0]


def test_a_table_that_counts_images_from_1_is_refused(tmp_path: Path) -> None:
    main, _ = cs_particles(4)
    write_stack(tmp_path / "J19/extract/a.mrc", 4)
    main["blob/idx"] += 1
    path = write_cs(tmp_path / "J20/particles.cs", main)
    with pytest.raises(
        FormatError, match=r"row 4: counts the images of a.mrc from 1 \(blob/idx is 4"
    ):
        open_source(path)
    write_cs(path, main[:3])  # nothing shows it, and nothing is beyond the end
    assert open_source(path).frame.tolist() == [1, 2, 3]


@pytest.mark.parametrize("form", ["npy", "csdat"])
def test_a_path_that_is_not_utf8_is_set_aside_and_the_rest_is_read(
    tmp_path: Path, form: str
) -> None:
    main, _ = cs_particles(3)
    main["blob/path"][1] = b"J19/extract/\xe9.mrc"
    path = write_cs(tmp_path / "J20/particles.cs", main)
    if form == "csdat":
        main["blob/path"][1] = b"J19/extract/QQ.mrc"
        write_cs(path, main)
        Dataset.load(path).save(path, format=CSDAT_FORMAT)
        path.write_bytes(path.read_bytes().replace(b"QQ", b"\xe9\xe9"))
    source = open_source(path)
    assert source.problems == {1: "has a blob/path with bytes that are not UTF-8: rename the file"}
    assert (
        source.images[1]
        == f"000002@J19/extract/\\xe9{'' if form == 'npy' else chr(92) + 'xe9'}.mrc"
    )
    assert source.stack.tolist() == [0, -1, 0]


def test_tables_without_images_and_empty_ones_are_told(tmp_path: Path) -> None:
    write_cs(tmp_path / "J5_passthrough_particles.cs", np.zeros(2, PASSTHROUGH_FIELDS))
    with pytest.raises(
        FormatError, match="has no field blob/path, so no images; give the job's own"
    ):
        open_source(tmp_path / "J5_passthrough_particles.cs")
    with pytest.raises(InputError, match="there is nothing to read"):
        find_sources(tmp_path)
    main, _ = cs_particles(1)
    with pytest.raises(FormatError, match="has no rows"):
        open_source(write_cs(tmp_path / "none.cs", main[:0]))


@given(
    pose=arrays(np.float32, (4, 3), elements=st.floats(-4, 4, width=32)),
)
def test_poses_become_relions_euler_angles(pose: np.ndarray) -> None:
    angles = euler_angles(pose)
    made = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    np.testing.assert_allclose(made, Rotation.from_rotvec(pose).as_matrix(), atol=1e-6)
    assert ((angles > -180) & (angles <= 180)).all()
    assert (angles[:, 1] >= 0).all()


def test_upright_poses_have_all_their_turn_in_psi_as_relion_has_it() -> None:
    pose = np.array([[0, 0, 0], [0, 0, 0.5], [0, np.pi, 0], [np.pi, 0, 0]])
    expected = [[0, 0, 0], [0, 0, np.degrees(0.5)], [0, 180, 0], [0, 180, 180]]
    np.testing.assert_allclose(euler_angles(pose), expected, atol=1e-6)


@pytest.mark.real
def test_real_particles_of_cryosparc_by_hand(real_data: Path) -> None:
    path = real_data / "formats/cryosparc/cryosparc_P12_J24_001_particles.cs"
    source, array = open_source(path), np.load(path)
    assert len(source) == 2019
    assert source.images[0] == f"000001@{array['blob/path'][0].decode()}"
    np.testing.assert_array_equal(source.frame, array["blob/idx"])
    np.testing.assert_allclose(
        source.metadata["rlnDefocusAngle"], np.rad2deg(array["ctf/df_angle_rad"])
    )
    np.testing.assert_allclose(
        source.metadata["rlnOriginXAngst"],
        array["alignments3D/shift"][:, 0].astype(float) * np.float32(2.95),
    )
    rotation = Rotation.from_euler(
        "ZYZ",
        np.stack([source.metadata[f"rlnAngle{name}"] for name in ("Rot", "Tilt", "Psi")], 1),
        degrees=True,
    )
    expected = Rotation.from_rotvec(array["alignments3D/pose"])
    assert (rotation * expected.inv()).magnitude().max() < 1e-5
