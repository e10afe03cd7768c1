"""Every file under ../shared/data/formats: read as an independent reader reads it, or refused in words."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
import pytest
import starfile

from cryoray.errors import FormatError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.source import open_source
from cryoray.formats.star import as_objects, parse
from cryoray.records import Kind

pytestmark = pytest.mark.real


class Particles(NamedTuple):
    """A STAR file of so many particles in so many stacks, with the first one's Å/px."""

    rows: int
    stacks: int
    pixel_size: float | None
    kind: Kind = "particle"
    column: str = "rlnImageName"


class Classes(NamedTuple):
    """A STAR file of so many classes."""

    rows: int
    stacks: int
    pixel_size: float | None
    kind: Kind = "class2d"
    column: str = "rlnReferenceImage"


class Images(NamedTuple):
    """An MRC file of so many images, rows and columns, with Å/px."""

    rows: int
    height: int
    width: int
    pixel_size: float | None


class CsParticles(NamedTuple):
    """A cryoSPARC table of so many particles in so many stacks, with the first one's Å/px."""

    rows: int
    stacks: int
    pixel_size: float


class Tables(NamedTuple):
    """A STAR file that is read, but has no images: as a source it is refused with this sentence."""

    sentence: str = "has no column rlnImageName; give a STAR file of extracted particles"


class Refused(NamedTuple):
    """The sentence."""

    sentence: str


_AXES = "has its axes in the order {}, which a stack never has; give a stack of images, not a map"
_JOB = "star/himena_relion5_jobs"

FILES: Mapping[str, Particles | Classes | CsParticles | Images | Tables | Refused] = {
    "cryosparc/4k_dataset.cs": Refused("has no field blob/path, so no images; give a .cs file of"),
    "cryosparc/cryosparc_J2_particles_exported.cs": CsParticles(22, 1, 1.345),
    "cryosparc/cryosparc_P12_J24_001_particles.cs": CsParticles(2019, 50, 2.95),
    "cryosparc/empiar_10076_7.cs": CsParticles(7, 1, 1.31),
    "malformed/epu2.9_example.TRUNCATED_1.5MB.mrc": Refused(
        "is shorter than its header says: 1,500,000 bytes, 34,464,768 expected; copy or extract"
    ),
    "malformed/fei-extended.TRUNCATED_1.5MB.mrc": Refused(
        "is shorter than its header says: 1,500,000 bytes, 29,265,416 expected; copy or extract"
    ),
    "malformed/git_lfs_pointer.mrc": Refused("is a Git LFS pointer, not the file itself; run `git"),
    "malformed/git_lfs_pointer.star": Refused(
        "is a Git LFS pointer, not the file itself; run `git"
    ),
    "malformed/not_an_mrc_symlink_text_41bytes.mrc": Refused(
        "is not an MRC file: 41 bytes, and the header alone has 1,024; copy or extract"
    ),
    "mrc/3pqr-mode0.ccp4": Refused(_AXES.format("2 1 3")),
    "mrc/EMD-3001.map": Refused(_AXES.format("3 1 2")),
    "mrc/EMD-3001.map.bz2": Refused(_AXES.format("3 1 2")),
    "mrc/emd_3001.map.gz": Refused(_AXES.format("3 1 2")),
    "mrc/EMD-3197.map": Images(20, 20, 20, 11.4),
    "mrc/EMD-3197.map.bz2": Images(20, 20, 20, 11.4),
    "mrc/emd_3197.map.gz": Images(20, 20, 20, 11.4),
    "mrc/emd_21457_seg_nstart.mrc": Images(47, 40, 48, 1.05),
    "mrc/emd_21457_seg_orig0.mrc": Images(47, 40, 48, 1.05),
    "mrc/emd_5625.map": Images(56, 56, 56, 4.23),
    "mrc/file.mrc": Images(10, 20, 30, 1 / 3),
    "mrc/noncubic_128x16x16_spike-vol.mrc": Images(128, 16, 16, 8.0),
    "mrc/noncubic_128x32x32_50S-vol.mrc": Images(128, 32, 32, 4.0),
    "mrc/odd_box65_ispg1_stack.mrcs": Images(5, 65, 65, None),
    "mrc/relion5_ctffind_PS.ctf": Images(1, 512, 512, None),
    "mrc/test.spi": Refused(
        "is a SPIDER file, which cryoray does not read; convert it with `relion_image"
    ),
    "mrc/xmipp_smallStack.mrcs": Images(4, 64, 64, None),
    "mrc/xmipp_smallStack.stk": Refused(
        "is a SPIDER file, which cryoray does not read; convert it with"
    ),
    "small-stacks/aspire_sample_17x200.mrcs": Images(17, 200, 200, None),
    "small-stacks/ay19102021_L3_position6_ribo_it09_bin8_1.82A.mrcs": Images(220, 64, 64, None),
    "small-stacks/empiar_10076_7.mrc": Images(7, 320, 320, None),
    "small-stacks/relion31.mrcs": Images(5, 256, 256, None),
    "star/aspire/rln_proj_64.star": Particles(5, 1, None),
    "star/aspire/rln_proj_64_centered.star": Particles(4, 1, 1.0),
    "star/aspire/rln_proj_64_shifted.star": Particles(4, 1, 1.0),
    "star/aspire/rln_proj_65.star": Particles(5, 1, None),
    "star/aspire/rln_proj_65_centered.star": Particles(4, 1, 1.0),
    "star/aspire/rln_proj_65_shifted.star": Particles(4, 1, 1.0),
    "star/aspire/sample.star": Refused(
        "has a second loop in its table data_planetary, which RELION"
    ),
    "star/aspire/sample_data_model.star": Tables("describes 3D classes, which are maps and not"),
    "star/aspire/sample_incomplete_ctf_params.star": Particles(1, 1, 1.338),
    "star/aspire/sample_particles_relion30.star": Particles(17, 1, 1.338),
    "star/aspire/sample_particles_relion31.star": Particles(17, 1, 1.4),
    "star/aspire/sample_relion_one_image.star": Particles(1, 1, 1.338),
    "star/aspire/sample_relion_symmetry_group_D4.star": Particles(17, 1, 1.338),
    "star/cryodrgn/FinalRefinement-OriginalParticles-PfCRT.star": Particles(5, 1, 1.035),
    "star/cryodrgn/empiar_10076_7.star": Particles(7, 1, 1.31),
    "star/cryodrgn/relion31.6opticsgroups.star": Particles(139, 139, 1.25),
    "star/cryodrgn/relion31.star": Particles(5, 1, 2.806),
    "star/cryodrgn/relion31.v2.star": Particles(5, 1, 2.806),
    "star/cryodrgn/relion5.star": Particles(17, 2, 0.89),
    "star/cryodrgn/sta_testing.star": Particles(219, 1, 1.96),
    "star/cryodrgn/sta_testing_bin8.star": Particles(219, 1, 1.96),
    "star/cryodrgn/toy_projections.star": Particles(1000, 1, None),
    "star/cryodrgn/toy_projections_13.star": Particles(13, 1, 1.035),
    "star/cryodrgn/toy_projections_dir.star": Particles(1000, 2, None),
    **{
        f"{_JOB}/{job}/job.star": Tables()
        for job in (
            *("Class2D/job001", "Extract/job001", "PostProcess/job001", "Refine3D/job001"),
            *(f"Select/job00{number}" for number in range(1, 6)),
        )
    },
    f"{_JOB}/default_pipelines/full.star": Tables(),
    f"{_JOB}/default_pipelines/no_input.star": Tables(),
    "star/localrec_relion1x/micrographs.star": Tables(),
    "star/localrec_relion1x/particles.star": Particles(99, 1, 3.54),
    "star/select_class_averages/class_averages.star": Classes(13, 1, None),
    "star/starfile/basic_double_quote.star": Tables(),
    "star/starfile/basic_single_quote.star": Tables(),
    "star/starfile/default_pipeline.star": Tables(),
    "star/starfile/empty_loop.star": Tables(),
    "star/starfile/loop_double_quote.star": Tables(),
    "star/starfile/loop_single_quote.star": Tables(),
    "star/starfile/one_loop.star": Tables("describes particles of tomograms (rlnCtfImage), and"),
    "star/starfile/postprocess.star": Tables(),
    **{
        f"star/starfile/relion_tutorial/run_it025_{name}.star": Tables()
        for name in ("sampling_2D", "sampling_3D")
    },
    **{
        f"star/starfile/relion_tutorial/run_it025_optimiser_{name}.star": Tables(
            "names a file that is not there: "
        )
        for name in ("2D", "3D")
    },
    "star/starfile/rln3.1_data_style.star": Particles(2, 1, None),
    "star/starfile/single_line_end_of_multiblock.star": Particles(2, 1, None),
    "star/starfile/single_line_middle_of_multiblock.star": Particles(1, 1, None),
    "star/starfile/two_basic_blocks.star": Tables(),
    "star/starfile/two_single_line_loop_blocks.star": Tables(),
    "star/topaz_t20s/ctf_params.star": Tables(),
    "star/topaz_t20s/particles.star": Particles(1500, 30, 0.9819),
}


def of(*kinds: type) -> list[str]:
    return [name for name, expected in FILES.items() if isinstance(expected, kinds)]


def pixel_size(value: float | None) -> Any:
    return pytest.approx(np.nan if value is None else value, rel=1e-3, nan_ok=True)


def test_every_file_is_in_the_table(real_data: Path) -> None:
    there = {
        path.relative_to(real_data / "formats").as_posix()
        for path in (real_data / "formats").rglob("*")
        if path.is_file()
    }
    assert there == set(FILES)


@pytest.mark.parametrize("name", of(Images))
def test_an_mrc_file_is_read_as_mrcfile_reads_it(name: str, real_data: Path) -> None:
    path, expected = real_data / "formats" / name, FILES[name]
    assert isinstance(expected, Images)
    stack = read_header(path)
    assert (stack.count, stack.height, stack.width) == expected[:3]
    assert (np.nan if stack.pixel_size is None else stack.pixel_size) == pixel_size(
        expected.pixel_size
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mrcfile warns of stamps that are missing
        with mrcfile.open(path, permissive=True) as peer:
            pixels = peer.data.reshape(expected[:3])
    every = np.arange(stack.count)
    np.testing.assert_array_equal(read_frames(stack, every), pixels.astype(np.float32))
    np.testing.assert_array_equal(read_frames(stack, every[::-2]), pixels[::-2].astype(np.float32))


@pytest.mark.parametrize("name", of(Refused))
def test_a_file_that_cannot_be_read_is_refused_in_words(name: str, real_data: Path) -> None:
    path, expected = real_data / "formats" / name, FILES[name]
    readers: dict[str, Callable[[Path], object]] = {".star": read_tables, ".cs": open_source}
    read = readers.get(path.suffix, read_header)
    with pytest.raises(FormatError, match=f"^{path}: {re.escape(str(expected[0]))}"):
        read(path)


def read_tables(path: Path) -> list[int]:
    return [len(block) for block in parse(path).blocks]


@pytest.mark.parametrize("name", of(CsParticles))
def test_a_cryosparc_table_is_read_as_numpy_reads_it(name: str, real_data: Path) -> None:
    path, expected = real_data / "formats" / name, FILES[name]
    assert isinstance(expected, CsParticles)
    table, source = np.load(path, allow_pickle=False), open_source(path)
    assert (len(source), len(source.stacks)) == expected[:2]
    assert source.pixel_size[0] == pixel_size(expected.pixel_size)
    np.testing.assert_array_equal(source.pixel_size, table["blob/psize_A"])
    assert source.uid is not None
    assert source.uid.tolist() == table["uid"].tolist()
    assert source.frame.tolist() == table["blob/idx"].tolist()
    for row, stack in enumerate(table["blob/path"].tolist()):
        assert source.stacks[source.stack[row]].match(stack.decode().lstrip(">"))
    for column, ours in (("ctf/df1_A", "rlnDefocusU"), ("ctf/accel_kv", "rlnVoltage")):
        if column in table.dtype.names:
            np.testing.assert_allclose(source.metadata[ours], table[column])
    assert not source.problems


@pytest.mark.parametrize("name", of(Particles, Classes, Tables))
def test_a_star_file_is_read_as_starfile_reads_it(name: str, real_data: Path) -> None:
    path = real_data / "formats" / name
    file = parse(path)
    if path.name == "no_input.star":  # starfile cannot: a row of its nodes is short
        nodes = file["pipeline_nodes"]
        words = "Import/job001/tilt_series.star TomogramGroupMetadata.star.relion.tomo.import"
        assert nodes.fields(0) == words.split()
        assert nodes.read(nodes.columns).malformed == {0: "has 2 fields, and its table 3 columns"}
        return
    tables = starfile.read(path, always_dict=True)
    assert list(file) == list(tables)
    for label, table in tables.items():
        block = file[label]
        assert list(block.columns) == list(table)
        if isinstance(table, dict):
            for text, value in zip(block.fields(0), table.values(), strict=True):
                assert (
                    value == pytest.approx(float(text))
                    if isinstance(value, int | float)
                    else (text == value)
                )
            continue
        numbers = [column for column in table if table[column].dtype.kind in "if"]
        texts = [column for column in table if column not in numbers]
        read = block.read(texts, numbers)
        for column in texts:
            assert as_objects(read.strings[column]).tolist() == table[column].tolist()
        for column in numbers:
            np.testing.assert_array_equal(read.numbers[column], table[column].to_numpy(float))


@pytest.mark.parametrize("name", of(Particles, Classes))
def test_a_star_file_of_images_is_a_source(name: str, real_data: Path) -> None:
    path, expected = real_data / "formats" / name, FILES[name]
    assert isinstance(expected, Particles | Classes)
    source = open_source(path, expected.kind)
    assert (len(source), len(source.stacks)) == expected[:2]
    assert source.pixel_size[0] == pixel_size(expected.pixel_size)
    assert not source.problems
    table = next(
        table
        for table in starfile.read(path, always_dict=True).values()
        if expected.column in table
    )
    names = table[expected.column] if len(source) > 1 else np.ravel(table[expected.column])
    assert source.images.tolist() == list(names)
    for row, image in enumerate(names):
        number, stack = image.split("@") if "@" in image else ("1", image)
        assert source.frame[row] == int(number) - 1
        assert source.stacks[source.stack[row]].match(stack)


@pytest.mark.parametrize("name", of(Tables))
def test_a_star_file_without_images_is_refused_in_words(name: str, real_data: Path) -> None:
    path, expected = real_data / "formats" / name, FILES[name]
    with pytest.raises(FormatError, match=f"^{path}: {re.escape(str(expected[0]))}"):
        open_source(path)


@pytest.mark.parametrize("iteration", ["000", "001", "010", "020", "025"])
@pytest.mark.long
def test_a_relion_5_class_job_is_read_as_starfile_reads_it(iteration: str, real_data: Path) -> None:
    run = real_data / "relion5-project/Class2D/job010" / f"run_it{iteration}"
    model = starfile.read(f"{run}_model.star")
    classes = open_source(Path(f"{run}_model.star"), "class2d")
    assert classes.images.tolist() == model["model_classes"]["rlnReferenceImage"].tolist()
    assert len(classes.stacks) == 1
    assert classes.stacks[0].is_file()
    for column in ("rlnEstimatedResolution", "rlnAccuracyRotations", "rlnClassDistribution"):
        np.testing.assert_array_equal(
            classes.metadata[column], model["model_classes"][column].to_numpy(float)
        )
    tables = starfile.read(f"{run}_data.star")
    particles = open_source(Path(f"{run}_data.star"))
    assert particles.images.tolist() == tables["particles"]["rlnImageName"].tolist()
    assert particles.micrograph.tolist() == tables["particles"]["rlnMicrographName"].tolist()
    assert all(stack.is_file() for stack in particles.stacks)
    for column in tables["particles"]:
        if tables["particles"][column].dtype.kind in "if":
            np.testing.assert_array_equal(
                particles.metadata[column], tables["particles"][column].to_numpy(float)
            )


def test_class_averages_and_their_selections_are_read(real_data: Path) -> None:
    files = sorted(real_data.glob("class-averages-*/**/*.star"))
    assert files
    for path in files:
        tables = starfile.read(path, always_dict=True)
        for label, block in parse(path).items():
            for column in block.columns:
                given = np.ravel(tables[label][column])
                if given.dtype.kind in "if":
                    np.testing.assert_array_equal(block.numbers(column), given.astype(float))
                else:
                    assert block.column(column).tolist() == given.tolist()
    for path in sorted(real_data.glob("class-averages-*/**/*.mrcs")):
        with mrcfile.open(path, permissive=True) as peer:
            stack = read_header(path)
            np.testing.assert_array_equal(
                read_frames(stack, np.arange(stack.count)), peer.data.astype(np.float32)
            )
