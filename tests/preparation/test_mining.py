"""Picks alone become labelled images: as CryoPPP has them, on a small copy of its layout."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryoray.errors import FormatError, InputError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.preparation.mining import mine
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import Settings
from cryoray.verbs.ingest import ingest

DIAMETER, PIXEL_SIZE, BOX = 40.0, 2.0, 36
PICKS = ((60, 50), (150, 90), (30, 100), (5, 40))  # the last too near the edge


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """``10017`` with two micrographs, particles dark, one named with cryoSPARC's number before it."""
    folder = tmp_path / "10017"
    rows = []
    for number in (1, 2):
        rng = np.random.default_rng(number)
        image = rng.normal(size=(128, 200)).astype(np.float32)
        y, x = np.indices(image.shape)
        for px, py in PICKS:
            image -= 8 * ((x - px) ** 2 + (y - py) ** 2 < 100)
            uid = "000021687123456789012_" if number == 2 else ""
            rows.append(f"micrographs/{uid}m{number}.mrc {px + 0.3} {py - 0.2}")
        (folder / "micrographs").mkdir(parents=True, exist_ok=True)
        with mrcfile.new(folder / f"micrographs/m{number}.mrc", image) as file:
            file.voxel_size = PIXEL_SIZE
    head = "\ndata_\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\n"
    (folder / "ground_truth").mkdir()
    star = folder / "ground_truth/empiar-10017_particles_selected.star"
    star.write_text(head + "\n".join(rows) + "\n")
    return folder


def star_of(entry: Path) -> Path:
    return entry / "ground_truth/empiar-10017_particles_selected.star"


def test_particles_are_cut_at_the_picks_and_negatives_away_from_them(
    entry: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mined"
    made = mine(star_of(entry), entry / "micrographs", out, DIAMETER)
    assert (made.positives, made.outside, made.micrographs) == (6, 2, 2)
    assert 0 < made.negatives <= 6
    source = open_source(out)
    assert len(source) == made.positives + made.negatives
    np.testing.assert_allclose(source.pixel_size, PIXEL_SIZE)
    found = find_selection(source.path)
    assert found is not None
    label = read_selection(found, source)
    assert label.tolist().count(1) == made.positives
    middle = np.hypot(*(np.indices((BOX, BOX)) - BOX // 2)) < 8
    for row, keep in enumerate(label.tolist()):
        stack = read_header(source.stacks[source.stack[row]])
        image = read_frames(stack, source.frame[row : row + 1])[0]
        assert image.shape == (BOX, BOX)
        assert (image[middle].mean() < -6) == (keep == 1)
    table = parse(out / "particles.star")["particles"]
    where = np.stack([table.numbers(f"rlnCoordinate{axis}") for axis in "XY"], 1)
    for place in where[label == 0]:
        assert np.hypot(*(np.array(PICKS) - place).T).min() > DIAMETER / PIXEL_SIZE - 1
    marked = [line.split(",")[2:] for line in (out / "labels.csv").read_text().splitlines()[1:]]
    assert all(mined == str(1 - int(selected)) for selected, mined in marked)
    settings = Settings(ingest={"preparation": {"box": 32}})
    table = PreparedSet.open(ingest([out], tmp_path / "set", settings)).table.to_pydict()
    for image, keep in zip(table["image"], table["label"], strict=True):
        assert image.split("@")[1].startswith("Extract/picked/" if keep else "Extract/mined/")


def test_the_same_seed_cuts_the_same(entry: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        mine(star_of(entry), entry / "micrographs", tmp_path / name, DIAMETER, seed=seed)
    a, b, c = ((tmp_path / name / "particles.star").read_text() for name in "abc")
    assert a == b != c


def test_what_cannot_be_mined_is_said_in_a_sentence(entry: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no micrograph \S*m2\.mrc, which .*selected\.star names"
    ):
        mine(star_of(entry), tmp_path, tmp_path / "out", DIAMETER)
    with pytest.raises(InputError, match="no pick whose box lies in its micrograph"):
        mine(star_of(entry), entry / "micrographs", tmp_path / "out", DIAMETER, box=500)
    star_of(entry).write_text("\ndata_\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n")
    with pytest.raises(FormatError, match="has no rows with rlnMicrographName"):
        mine(star_of(entry), entry / "micrographs", tmp_path / "out", DIAMETER)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a folder of mined images"):
        mine(star_of(entry), entry / "micrographs", tmp_path / "other", DIAMETER)
