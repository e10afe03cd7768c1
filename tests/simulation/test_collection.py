"""Collections on disk: complete, readable, the same again, as noisy as stated, with every kind of junk."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cryoray.errors import InputError, SettingsError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.selection import find_selection, read_reasons, read_selection
from cryoray.formats.source import find_sources, open_source
from cryoray.records import REASONS, Event, Progress
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate
from cryoray.simulation.junk import KINDS, OFF_CENTRE, PARTICLE

pytestmark = pytest.mark.long

BOX = 48


def settings(**chosen: object) -> Settings:
    defaults = {"projects": 1, "images": 20, "per_micrograph": 10, "box": BOX, "pixel_size": 3.0}
    return Settings(simulate=SimulateSettings.model_validate(defaults | chosen))


def truth(project: Path) -> dict[str, np.ndarray]:
    rows = read_truth(project)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def images(project: Path) -> np.ndarray:
    stacks = sorted(project.glob("Extract/job001/*.mrcs"))
    headers = [read_header(stack) for stack in stacks]
    return np.concatenate([read_frames(header, np.arange(header.count)) for header in headers])


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[object]]:
    out, told = tmp_path_factory.mktemp("simulated") / "day", list[object]()
    made = simulate(
        out,
        settings(projects=2, images=25, human_error=0.2, pixel_size=None),
        on_progress=told.append,
        on_event=told.append,
    )
    return out, made, told


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough of each kind of junk to take statistics of."""
    out = tmp_path_factory.mktemp("simulated") / "zoo"
    (project,) = simulate(
        out, settings(images=240, per_micrograph=120, snr=0.2, junk=0.7, pixel_size=None)
    )
    return project


def test_each_project_is_a_source_with_a_selection_and_the_truth(
    day: tuple[Path, list[Path], list[object]],
) -> None:
    out, made, _ = day
    assert made == [out / "project-01", out / "project-02"]
    book = json.loads((out / "collection.json").read_text())
    assert book["settings"]["images"] == 25
    for project, said in zip(made, book["projects"], strict=True):
        (found,) = find_sources(project)
        source = open_source(found)
        assert len(source) == 25
        assert not source.problems
        assert [stack.is_file() for stack in source.stacks] == [True] * 3
        assert images(project).shape == (25, BOX, BOX)
        true = truth(project)
        assert true["image"].tolist() == [*source.images]
        selection = find_selection(found)
        assert selection is not None
        labels = read_selection(selection, source)
        reasons = read_reasons(selection, source)
        assert reasons is not None
        named = np.where(true["kind"] == "drift", "blurred", true["kind"])
        named[(labels == 1) | (named == PARTICLE)] = ""
        assert [[*REASONS, ""][at] for at in reasons] == named.tolist()
        keep = true["keep"].astype(int)
        assert (labels != keep).sum() == said["mislabelled"] == 5
        assert keep.sum() == said["keep"] == (true["kind"] == PARTICLE).sum()
        np.testing.assert_allclose(source.pixel_size, said["pixel_size"], rtol=1e-4)
        assert 1.4 <= BOX * said["pixel_size"] / said["diameter"] <= 2.6
        assert len(set(source.micrograph)) == 3
        assert np.isfinite(source.metadata["rlnDefocusU"]).all()
    assert book["projects"][0]["structure"] != book["projects"][1]["structure"]


def test_progress_ends_at_the_number_of_images(day: tuple[Path, list[Path], list[object]]) -> None:
    *_, told = day
    progress = [item for item in told if isinstance(item, Progress)]
    assert (progress[-1].done, progress[-1].total) == (50, 50)
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert sum(isinstance(item, Event) for item in told) == 2


def test_the_same_settings_give_the_same_files(
    tmp_path: Path, day: tuple[Path, list[Path], list[object]]
) -> None:
    _, made, _ = day
    again = simulate(tmp_path / "again", settings(images=25, human_error=0.2, pixel_size=None))
    assert files(again[0]) == files(made[0])
    other = simulate(
        tmp_path / "other", settings(images=25, human_error=0.2, pixel_size=None, seed=1)
    )
    assert not np.allclose(images(other[0]), images(made[0]))


def test_a_folder_is_not_filled_twice_nor_with_something_else(
    day: tuple[Path, list[Path], list[object]],
) -> None:
    out, made, _ = day
    before = (made[0] / "particles.star").stat().st_mtime_ns
    same = settings(projects=2, images=25, human_error=0.2, pixel_size=None)
    assert simulate(out, same) == made
    # Nor one that was filled before there was this setting.
    book = out / "collection.json"
    text = book.read_text()
    written = json.loads(text)
    del written["settings"]["micrographs"]
    book.write_text(json.dumps(written))
    assert simulate(out, same) == made
    assert (made[0] / "particles.star").stat().st_mtime_ns == before
    book.write_text(text)
    with pytest.raises(InputError, match="another simulation"):
        simulate(out, settings(projects=2, images=25, seed=9))


def test_images_are_normalised_as_relion_does(zoo: Path) -> None:
    axis = (np.arange(BOX) - BOX // 2) / (BOX / 2)
    ring = images(zoo)[:, np.add.outer(axis**2, axis**2) > 0.75**2]
    np.testing.assert_allclose(ring.mean(1), 0, atol=1e-3)
    np.testing.assert_allclose(ring.std(1), 1, atol=1e-2)


def test_signal_to_noise_is_as_stated(tmp_path: Path) -> None:
    """The same scenes with and without particles: what differs is signal, what is left is noise."""
    chosen = {"images": 120, "per_micrograph": 20, "junk": 0.0}
    (loud,) = simulate(tmp_path / "loud", settings(snr=0.5, **chosen))
    (mute,) = simulate(tmp_path / "mute", settings(snr=1e-9, **chosen))
    said = json.loads((tmp_path / "loud" / "collection.json").read_text())["projects"][0]
    both, noise = images(loud), images(mute)
    unit = (both * noise).mean((1, 2)) / (noise**2).mean((1, 2))
    signal = both / unit[:, None, None] - noise
    axis = (np.arange(BOX) - BOX // 2) * said["pixel_size"]
    mask = np.add.outer(axis**2, axis**2) <= (said["diameter"] / 2) ** 2
    measured = signal[:, mask].var(1).mean() / noise[:, mask].var(1).mean()
    assert measured == pytest.approx(said["snr"], rel=0.2)
    assert said["snr"] == pytest.approx(0.5, rel=0.4)
    assert signal[:, mask].mean() > 0  # protein is bright


def test_junk_is_as_much_as_stated_and_of_every_kind(zoo: Path) -> None:
    kinds, counts = np.unique(truth(zoo)["kind"], return_counts=True)
    count = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    assert set(count) == {PARTICLE, *KINDS}
    bad = [count[kind] for kind in KINDS]
    assert max(bad) - min(bad) <= 1
    assert sum(bad) / 240 == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize(("junk", "keep"), [(0.0, 20), (1.0, 0)])
def test_no_junk_and_nothing_else(tmp_path: Path, junk: float, keep: int) -> None:
    (project,) = simulate(tmp_path / "day", settings(junk=junk, human_error=0.0))
    assert (truth(project)["keep"] == "1").sum() == keep
    with (project / "labels.csv").open() as file:
        assert [row["selected"] for row in csv.DictReader(file)] == [*truth(project)["keep"]]


def test_each_kind_of_junk_differs_from_particles_in_its_own_way(zoo: Path) -> None:
    kind, pixels = truth(zoo)["kind"], images(zoo)
    axis = (np.arange(BOX) - BOX // 2) / BOX
    radius = np.hypot(axis[:, None], axis)
    low = ndimage.gaussian_filter(pixels, (0, 1.5, 1.5))
    middle = np.log(low[:, radius < 0.35].var(1))
    tiles = pixels.reshape(len(pixels), 4, BOX // 4, 4, BOX // 4).var((2, 4)).reshape(-1, 16)
    y, x = np.fft.fftfreq(BOX)[:, None], np.fft.fftfreq(BOX)
    power = np.abs(np.fft.fft2(pixels)) ** 2 * (x**2 + y**2 < 0.25**2)
    grain = (power * (x + 1j * y) ** 2).sum((1, 2)) / (power * (x**2 + y**2)).sum((1, 2))
    statistics = {
        "empty": (-middle, 0.9),
        "off_centre": (-low[:, radius < 0.15].mean(1), 0.85),
        "broken": (-middle, 0.6),
        "aggregate": (middle, 0.85),
        "ice": (np.abs(middle - np.median(middle[kind == PARTICLE])), 0.7),
        "carbon": (tiles.std(1) / tiles.mean(1), 0.75),
        "drift": (np.abs(grain), 0.8),
    }
    for name, (value, least) in statistics.items():
        above = value[kind == name][:, None] > value[kind == PARTICLE][None]
        assert above.mean() > least, name


def test_what_is_off_centre_is_and_particles_are_not(zoo: Path) -> None:
    true = truth(zoo)
    for kind, low, high in ((PARTICLE, 0.0, 0.1), ("off_centre", OFF_CENTRE, 0.5)):
        here = true["kind"] == kind
        far = np.hypot(true["x"][here].astype(float), true["y"][here].astype(float)) / BOX
        assert far.min() >= low - 1e-3
        assert far.max() <= high
    assert set(true["rot"][true["kind"] == "empty"]) == {""}


def test_the_pickers_figure_of_merit_is_weakly_right(zoo: Path) -> None:
    figure = open_source(zoo / "particles.star").metadata["rlnAutopickFigureOfMerit"]
    keep = truth(zoo)["keep"] == "1"
    assert 0.5 < (figure[keep][:, None] > figure[~keep]).mean() < 0.8


def test_a_person_errs_most_on_doubtful_images(tmp_path: Path) -> None:
    chosen = settings(images=400, per_micrograph=400, box=32, human_error=0.3, junk=0.5)
    (project,) = simulate(tmp_path / "day", chosen)
    true = truth(project)
    with (project / "labels.csv").open() as file:
        selected = np.array([row["selected"] for row in csv.DictReader(file)])
    wrong = selected != true["keep"]
    assert wrong.sum() == 120
    assert wrong[true["kind"] == "broken"].mean() > 1.3 * wrong[true["kind"] == "ice"].mean()


def test_a_given_structure_is_simulated_and_a_too_large_one_refused(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(-40, 40, (500, 3))
    model = tmp_path / "block.pdb"
    model.write_text(
        "".join(
            f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}\n"
            for i, (x, y, z) in enumerate(points, 1)
        )
    )
    simulate(tmp_path / "day", settings(structure=model, pixel_size=None))
    book = json.loads((tmp_path / "day" / "collection.json").read_text())
    assert book["projects"][0]["structure"] == "block"
    assert book["projects"][0]["diameter"] == pytest.approx(130, rel=0.1)
    with pytest.raises(SettingsError, match="does not fit a box of 48 px"):
        simulate(tmp_path / "close", settings(structure=model, pixel_size=1.5))


def test_a_project_is_the_same_wherever_one_begins_to_count(tmp_path: Path) -> None:
    few = {"images": 12, "per_micrograph": 12, "box": 32, "seed": 3}
    both = simulate(tmp_path / "both", Settings(simulate=SimulateSettings(projects=2, **few)))
    one = simulate(
        tmp_path / "one", Settings(simulate=SimulateSettings(projects=1, first=2, **few))
    )
    assert [folder.name for folder in one] == ["project-02"]
    assert (one[0] / "particles.star").read_text() == (both[1] / "particles.star").read_text()
    stack = "Extract/job001/micrograph_0001.mrcs"
    assert (one[0] / stack).read_bytes() == (both[1] / stack).read_bytes()
