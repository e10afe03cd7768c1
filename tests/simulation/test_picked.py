"""Micrographs, pickers and projects of picks: signs, places, labels by what lies there, spectra, files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.io import imsave

from cryoray.errors import FormatError, InputError, SettingsError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import find_sources, open_source
from cryoray.formats.star import parse
from cryoray.records import REASONS
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import picking, read_truth, simulate
from cryoray.simulation.backgrounds import read_background, real_layers
from cryoray.simulation.contamination import (
    AGGREGATE,
    CARBON,
    CLEAR,
    HABITS,
    ICE,
    Frame,
    Layers,
    contaminate,
)
from cryoray.simulation.junk import KINDS, PARTICLE
from cryoray.simulation.micrograph import Noise, expose
from cryoray.simulation.microscope import Exposure, Optics, transfer
from cryoray.simulation.phantom import empty_micelle, in_micelle, occupied_volume, random_structure
from cryoray.simulation.picked import boxes, generator, picked, plan
from cryoray.simulation.picking import Habit
from cryoray.simulation.specimen import (
    BROKEN,
    FRAGMENT,
    MICELLE,
    WHOLE,
    Bodies,
    Preparation,
    Specimen,
    prepared,
    random_habits,
    specimen_of,
)
from cryoray.simulation.tables import reason_of
from cryoray.simulation.versions import DENOISERS, VERSIONS, binned, developed, masked

PIXEL = 3.0
OPTICS = Optics(300, 2.7, 0.1, PIXEL, PIXEL, 0.5, 10, 1, 1.0)
EXPOSURE = Exposure(2.05e4, 1.95e4, 30.0, 100, 1.0)
SILENT = Noise(
    shot=1e-6, ice=0, debris=0, debris_size=40, debris_fall=1, waves=0, hot=0, total=1e-6
)
FRAME = Frame(240, 300, PIXEL, 120 / PIXEL)


def settings(**chosen: object) -> Settings:
    defaults = {"projects": 1, "images": 60, "per_micrograph": 30, "box": 64, "micrographs": True}
    return Settings(simulate=SimulateSettings.model_validate(defaults | chosen))


@pytest.fixture(scope="module")
def preparation() -> Preparation:
    """A compact protein of 120 Å with everything that may lie beside it."""
    rng = np.random.default_rng(4)
    structure = random_structure(rng, 120, "dihedral")
    habits = replace(random_habits(rng, 120, False), broken=0.1, fragments=0.1, micelles=0.1)
    habits = replace(habits, preferred=0.0)
    return prepared(structure, habits, PIXEL, rng)


def lying(
    preparation: Preparation, *bodies: tuple[float, float, str], layers: Layers | None = None
) -> Specimen:
    places = np.array([(x, y) for x, y, _ in bodies], float).reshape(-1, 2)
    kinds = np.array([kind for *_, kind in bodies], object)
    around = Layers.clean(FRAME) if layers is None else layers
    return specimen_of(preparation, FRAME, around, places, kinds, np.random.default_rng(0))


def pixels(specimen: Specimen, noise: Noise = SILENT, exposure: Exposure = EXPOSURE) -> np.ndarray:
    """A micrograph in ice so thin that its unevenness does not show."""
    rng = np.random.default_rng(1)
    return expose(specimen, OPTICS, exposure, noise, 1e-3, (0.0, 0.0), rng).pixels


def test_a_weak_object_is_imaged_by_the_ctf_that_relion_would_correct_for() -> None:
    """An image of a small phase is one minus twice the phase under torch-ctf's CTF, astigmatism included."""
    frame = Frame(128, 128, PIXEL, 20)
    layers = Layers.clean(frame)
    layers.phase += 1e-3 * np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    none = Bodies(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0))
    exposure = replace(EXPOSURE, defocus_u=1.4e4, defocus_v=1.0e4)
    silent = replace(SILENT, shot=1e-9)
    rng = np.random.default_rng(0)
    made = expose(Specimen(frame, none, layers), OPTICS, exposure, silent, 1e-3, (0.0, 0.0), rng)
    phase = torch.fft.rfft2(torch.from_numpy(layers.phase))
    expected = torch.fft.irfft2(-2 * phase * transfer(OPTICS, exposure, 128), s=(128, 128))
    got = torch.from_numpy(made.pixels) - 1
    got, expected = got - got.mean(), expected - expected.mean()
    correlation = float((got * expected).sum() / (got.norm() * expected.norm()))
    assert correlation > 0.999
    # sqrt(1 - 0.1²) is the part of phase contrast; the amplitude contrast goes with it.
    assert float(got.norm() / expected.norm()) == pytest.approx(1.005, abs=0.01)


def test_protein_is_dark_in_micrographs_and_bright_in_boxes(preparation: Preparation) -> None:
    near_focus = replace(EXPOSURE, defocus_u=8e3, defocus_v=8e3)
    image = pixels(lying(preparation, (150, 120, WHOLE)), exposure=near_focus)
    assert image.mean() == pytest.approx(1, abs=0.02)
    y, x = np.ogrid[:240, :300]
    near = np.hypot(x - 150, y - 120) < 16
    smooth = ndimage.gaussian_filter(image, 5) - image.mean()
    assert -smooth[near].min() > 2 * smooth.max() > 0
    some = islice(picked(plan(settings(snr=2).simulate, 1, "globular", None), 0), 4)
    good = torch.cat([one.images[torch.from_numpy(one.truth.kind == PARTICLE)] for one in some])
    assert len(good) > 5
    axis = torch.arange(64) - 32
    inside = axis[:, None] ** 2 + axis**2 < 8**2
    assert float(good[:, inside].mean()) > 0.2


def test_a_particle_is_where_it_was_put(preparation: Preparation) -> None:
    flat = replace(EXPOSURE, defocus_u=5e3, defocus_v=5e3)
    image = 1 - pixels(lying(preparation, (101.0, 77.0, WHOLE)), exposure=flat)
    image = np.clip(image - 0.3 * image.max(), 0, None)
    y, x = np.mgrid[:240, :300]
    centre = (np.array([(image * x).sum(), (image * y).sum()])) / image.sum()
    assert np.hypot(*(centre - [101, 77])) < 0.1 * FRAME.diameter


@pytest.mark.parametrize("picker", picking.PICKERS)
def test_pickers_find_single_particles(preparation: Preparation, picker: picking.Picker) -> None:
    wanted = [(60.0, 60.0), (200.0, 70.0), (120.0, 180.0)]
    specimen = lying(preparation, *((x, y, WHOLE) for x, y in wanted))
    loud = replace(SILENT, shot=0.015)
    habit = Habit(picker, 1.0, 0.7, 1.0, np.inf, 0.0)
    rng = np.random.default_rng(0)
    templates = picking.references(preparation.projectors[WHOLE][0], rng)
    found = picking.pick(pixels(specimen, loud), FRAME.diameter, habit, templates)
    assert (np.diff(found.merit) <= 0).all()
    best = found[:3].places
    far = [min(np.hypot(*(place - other)) for other in best) for place in wanted]
    assert max(far) < picking.CENTRED * FRAME.diameter
    # What is picked after these is nothing like them.
    assert found.merit[2] > 1.3 * found.merit[3]


def test_labels_are_what_lies_there(preparation: Preparation) -> None:
    d = FRAME.diameter
    specimen = lying(
        preparation,
        (60, 60, WHOLE),
        (160, 60, BROKEN),
        (240, 60, FRAGMENT),
        (60, 180, MICELLE),
        (150, 180, WHOLE),
        (150 + 0.3 * d, 180, WHOLE),
    )
    places = [(60, 60), (60 + 0.4 * d, 60), (160, 60), (240, 60), (60, 180), (150, 180), (250, 180)]
    truth = picking.look_under(np.array(places, float), specimen)
    assert truth.kind.tolist() == [
        PARTICLE,
        "off_centre",
        "broken",
        "broken",
        "ice",
        "aggregate",
        "empty",
    ]
    assert truth.detail.tolist()[2:6] == ["broken", "fragment", "micelle", "overlap"]
    assert truth.body.tolist()[:2] == [0, 0]
    np.testing.assert_allclose(truth.offset[1], [-0.4 * d, 0], atol=1e-6)
    assert truth.body[-1] == -1
    assert truth.ambiguity[1] > truth.ambiguity[0]
    moved = picking.look_under(np.array([[60.0, 60.0]]), specimen, (0.3 * d, 0.0))
    assert moved.kind.tolist() == ["drift"]
    assert {reason_of(kind) for kind in (*truth.kind, "drift")} <= {*REASONS, ""}


@pytest.mark.parametrize(
    ("code", "kind"), [(CARBON, "carbon"), (ICE, "ice"), (AGGREGATE, "aggregate")]
)
def test_a_particle_on_film_or_dirt_is_junk(preparation: Preparation, code: int, kind: str) -> None:
    layers = Layers.clean(FRAME)
    layers.what[:, :100] = code
    specimen = lying(preparation, (70, 120, WHOLE), (200, 120, WHOLE), layers=layers)
    truth = picking.look_under(np.array([[70.0, 120.0], [200.0, 120.0]]), specimen)
    assert truth.kind.tolist() == [kind, PARTICLE]


@pytest.mark.parametrize("name", HABITS)
def test_each_contamination_is_drawn_and_marked(name: str) -> None:
    frame = Frame(300, 300, 4.0, 30)
    rng = np.random.default_rng(2)
    for _ in range(6):
        layers = contaminate(frame, {name: 3.0}, rng)
        if (layers.what != CLEAR).any():
            break
    marked = layers.what != CLEAR
    assert marked.mean() > 0.001
    assert {*np.unique(layers.what)} <= {
        CLEAR,
        {"carbon": CARBON, "gold": CARBON, "network": AGGREGATE}.get(name, ICE),
    }
    matter = layers.phase + layers.loss
    assert np.isfinite(matter).all()
    if not marked.all():
        assert np.abs(matter[marked]).mean() > 3 * np.abs(matter[~marked]).mean()
    clean = contaminate(frame, {}, rng)
    assert not clean.phase.any()
    assert not clean.what.any()


def test_contamination_is_darker_than_protein_and_film_is_granular() -> None:
    frame = Frame(256, 256, PIXEL, 40)
    layers = Layers.clean(frame)
    layers.phase[:, :128] += 0.4
    layers.grain[:, :128] = 3.0
    none = Bodies(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0))
    noise = replace(SILENT, shot=0.05, ice=0.05)
    image = pixels(Specimen(frame, none, layers), noise)
    assert image[:, 20:100].mean() < image[:, 160:240].mean() - 0.02
    assert image[:, 20:100].std() > 1.5 * image[:, 160:240].std()


def test_ice_shows_thon_rings_and_shot_noise_does_not() -> None:
    """Power of empty ice, by shell: high where the CTF is, flat without ice."""
    frame = Frame(512, 512, PIXEL, 40)
    none = Bodies(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0))
    exposure = replace(EXPOSURE, defocus_u=2e4, defocus_v=2e4)
    contrast = transfer(OPTICS, exposure, 512).abs()
    y = torch.fft.fftfreq(512)[:, None]
    radius = (torch.fft.rfftfreq(512)[None] ** 2 + y**2).sqrt()
    band = (radius > 0.05) & (radius < 0.3)
    high, low = band & (contrast > 0.6), band & (contrast < 0.1)
    ratios = []
    for ice in (0.05, 0.0):
        noise = replace(SILENT, shot=0.1, ice=ice, total=0.1)
        image = torch.from_numpy(
            pixels(Specimen(frame, none, Layers.clean(frame)), noise, exposure)
        )
        power = torch.fft.rfft2(image).abs() ** 2
        ratios.append(float(power[high].mean() / power[low].mean()))
    assert ratios[0] > 1.4
    assert ratios[1] == pytest.approx(1, abs=0.1)


def test_signal_to_noise_of_a_project_is_about_as_stated() -> None:
    """The same micrograph with and without its particles, at the places of good ones."""
    chosen = settings(snr=0.3, per_micrograph=60).simulate
    project = plan(chosen, 0, "globular", None)
    clean = replace(project.preparation.habits, rates={}, empty=0.0, clumps=0.0, unevenness=0.0)
    clean = replace(clean, crowding=0.1, spacing=1.3, broken=0.0, fragments=0.0, micelles=0.0)
    shy = replace(project.preparation, habits=clean)
    frame, kept = project.frame, []
    rng = generator(0, 99)
    places = np.array([[x, y] for x in range(60, frame.width - 60, 90) for y in range(60, 300, 90)])
    kinds = np.full(len(places), WHOLE, object)
    exposures = [Exposure(d, d, 0, 150, 1) for d in np.linspace(*project.defocus, 4)]
    for exposure in exposures:
        both = []
        for scale in (1.0, 0.0):
            prepared_ = replace(shy, scale=shy.scale * scale)
            layers = Layers.clean(frame)
            specimen = specimen_of(
                prepared_, frame, layers, places, kinds, np.random.default_rng(1)
            )
            made = expose(
                specimen,
                project.optics,
                exposure,
                replace(project.noise, hot=0, waves=0),
                100.0,
                (0.0, 0.0),
                np.random.default_rng(2),
            )
            both.append(boxes(made.pixels, places, project.box))
        axis = torch.arange(project.box) - project.box // 2
        inside = axis[:, None] ** 2 + axis**2 <= (frame.diameter / 2) ** 2
        signal = (both[0] - both[1])[:, inside].var(1).mean()
        kept.append(float(signal / both[1][:, inside].var(1).mean()))
    assert rng is not None
    assert np.mean(kept) == pytest.approx(project.snr, rel=0.4)


def test_boxes_are_cut_as_relion_cuts_them_and_edges_repeated() -> None:
    image = np.arange(100 * 120, dtype=np.float32).reshape(100, 120)
    cut = boxes(image, np.array([[50.4, 61.6], [2.0, 98.0]]), 16).numpy()
    np.testing.assert_array_equal(cut[0], image[53:69, 42:58])
    np.testing.assert_array_equal(cut[1, :, :6], np.repeat(cut[1, :, 6:7], 6, 1))
    np.testing.assert_array_equal(cut[1, -6:], np.repeat(cut[1, 9:10], 6, 0))


@pytest.mark.parametrize("name", ["vesicle", "filament"])
def test_micelles_surround_proteins_and_swim_alone(name: str) -> None:
    rng = np.random.default_rng(len(name))
    structure = random_structure(rng, 90, "globular")
    whole = in_micelle(structure, rng)
    assert whole.diameter > structure.diameter
    assert occupied_volume(whole) > 1.1 * occupied_volume(structure)
    alone = empty_micelle(structure, rng)
    assert 45 < alone.diameter < 110


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_of_the_same_picks(version: str) -> None:
    """The pickers saw the raw micrograph, so versions differ in nothing but what was done to images."""
    chosen = settings(snr=0.5).simulate
    raw = next(picked(plan(chosen, 2, "ring", None), 0))
    project = plan(chosen.model_copy(update={"version": version}), 2, "ring", None)
    other = next(picked(project, 0))
    np.testing.assert_array_equal(raw.picks.places, other.picks.places)
    assert raw.truth.kind.tolist() == other.truth.kind.tolist()
    n = len(raw.picks.places)
    assert other.images.shape == ((n, 32, 32) if version == "binned" else (n, 64, 64))

    def rough(images: torch.Tensor) -> float:
        step = images[:, 1:, 8:-8] - images[:, :-1, 8:-8]
        return float(step.var() / images[:, 8:-8, 8:-8].var())

    if version in ("denoised", "low-passed"):
        assert rough(other.images) < 0.7 * rough(raw.images)
    if version == "8-bit":
        assert {*np.unique(other.pixels)} <= {*range(256)}
        assert len(np.unique(other.pixels)) > 50
    if version == "masked":
        assert float(other.images[:, :3, :3].abs().max()) == 0
    if version in ("raw", "binned", "masked"):
        np.testing.assert_array_equal(raw.pixels, other.pixels)


@pytest.mark.parametrize("seed", range(12))
def test_denoisers_keep_what_is_there(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128]
    true = -np.exp(-((x % 32 - 16) ** 2 + (y % 32 - 16) ** 2) / 30).astype(np.float32)
    noisy = true + rng.normal(0, 1, true.shape).astype(np.float32)
    quiet = developed(noisy, "denoised", PIXEL, rng)
    before, after = (np.corrcoef(true.ravel(), one.ravel())[0, 1] for one in (noisy, quiet))
    assert after > 1.4 * before
    assert len(DENOISERS) == 4


@pytest.mark.parametrize("version", VERSIONS)
def test_a_micrograph_without_picks_has_no_boxes(version: str) -> None:
    """So of a person who wants more than there is, and takes no box that reaches out."""
    project = plan(settings(version=version).simulate, 0, "globular", None)
    shy = replace(project, frame=replace(project.frame, height=120, width=120), whole_boxes=True)
    made = [next(picked(replace(shy, number=n), 0)) for n in range(4)]
    side = 32 if version == "binned" else 64
    assert min(len(one.images) for one in made) == 0
    assert {one.images.shape[1:] for one in made} == {(side, side)}


def test_binning_keeps_means_and_masks_keep_the_middle() -> None:
    images = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)) + 2
    small = binned(images, 16)
    torch.testing.assert_close(small.mean((1, 2)), images.mean((1, 2)))
    kept = masked(images, 0.3)
    torch.testing.assert_close(kept[:, 12:20, 12:20], images[:, 12:20, 12:20])


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    out = tmp_path_factory.mktemp("picked") / "day"
    return out, simulate(out, settings(projects=2, snr=0.6, human_error=0.1, seed=3))


def test_a_project_of_picks_is_a_source_with_a_selection_and_the_truth(
    day: tuple[Path, list[Path]],
) -> None:
    out, made = day
    book = json.loads((out / "collection.json").read_text())
    for project, said in zip(made, book["projects"], strict=True):
        (found,) = find_sources(project)
        source = open_source(found)
        assert len(source) == said["images"] == 60
        assert not source.problems
        true = read_truth(project)
        assert [row["image"] for row in true] == [*source.images]
        assert {row["kind"] for row in true} <= {PARTICLE, *KINDS}
        selection = find_selection(found)
        assert selection is not None
        labels = read_selection(selection, source)
        keep = np.array([int(row["keep"]) for row in true])
        assert (labels != keep).sum() == said["mislabelled"] == 6
        assert keep.sum() == said["keep"]
        assert [row["kind"] == PARTICLE for row in true] == keep.astype(bool).tolist()
        assert (project / "truth.mrc").is_file()
        with (project / "labels.csv").open() as file:
            reasons = {row["reason"] for row in csv.DictReader(file)}
        assert reasons <= {*REASONS, ""}


def test_star_files_agree_with_where_boxes_were_cut(day: tuple[Path, list[Path]]) -> None:
    _, made = day
    for project in made:
        source = open_source(project / "particles.star")
        listed = parse(project / "MotionCorr/job001/corrected_micrographs.star")
        names = [*listed["micrographs"].column("rlnMicrographName")]
        assert {*source.micrograph} <= {*names}
        optics = parse(project / "particles.star")["optics"]
        size = optics.numbers("rlnImagePixelSize")[0]
        assert optics.numbers("rlnMicrographOriginalPixelSize")[0] == size
        for name in np.unique(source.micrograph):
            header = read_header(project / name)
            assert header.pixel_size == pytest.approx(size, rel=1e-4)
            (whole,) = read_frames(header, np.arange(1))
            rows = np.flatnonzero(source.micrograph == name)
            at = np.stack([source.metadata[f"rlnCoordinate{axis}"][rows] for axis in "XY"], 1)
            cut = boxes(-whole, at, 64).numpy()
            stack = project / source.images[rows[0]].split("@")[1]
            images = read_frames(read_header(stack), np.arange(len(rows)))
            for one, other in zip(cut, images, strict=True):
                correlation = np.corrcoef(remainder(one).ravel(), other.ravel())[0, 1]
                assert correlation > 0.9999
            defocus = source.metadata["rlnDefocusU"][rows]
            assert np.ptp(defocus) == 0
            assert 3e3 < defocus[0] < 5e4
        truth = read_truth(project)
        particles = parse(project / "particles.star")["particles"]
        origin = particles.numbers("rlnOriginXAngst")
        for row, value in zip(truth, origin, strict=True):
            if row["x"]:
                assert float(row["x"]) * size == pytest.approx(-value, abs=0.01)


def remainder(image: np.ndarray) -> np.ndarray:
    """An image without the plane through what lies outside the background circle."""
    side = len(image)
    axis = (np.arange(side) - side // 2) / (side / 2)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    outside = x**2 + y**2 > 0.75**2
    plane = np.stack([np.ones_like(x), x, y], -1)
    return image - plane @ np.linalg.lstsq(plane[outside], image[outside], rcond=None)[0]


def test_a_project_of_picks_is_the_same_again_and_wherever_one_begins_to_count(
    tmp_path: Path, day: tuple[Path, list[Path]]
) -> None:
    _, made = day
    (again,) = simulate(
        tmp_path / "one",
        settings(projects=1, first=2, snr=0.6, human_error=0.1, seed=3, written=False),
    )
    assert not (again / "MotionCorr").exists()
    for name in ("particles.star", "truth.csv", "labels.csv"):
        assert (again / name).read_bytes() == (made[1] / name).read_bytes()
    for stack in again.glob("Extract/job001/*.mrcs"):
        assert stack.read_bytes() == (made[1] / "Extract/job001" / stack.name).read_bytes()


def test_binned_images_have_twice_the_pixel_of_their_micrographs(tmp_path: Path) -> None:
    (project,) = simulate(tmp_path / "day", settings(images=20, snr=0.6, seed=3, version="binned"))
    optics = parse(project / "particles.star")["optics"]
    original = optics.numbers("rlnMicrographOriginalPixelSize")[0]
    assert optics.numbers("rlnImagePixelSize")[0] == pytest.approx(2 * original, rel=1e-5)
    assert optics.numbers("rlnImageSize")[0] == 32
    source = open_source(project / "particles.star")
    name = source.micrograph[0]
    header = read_header(project / name)
    assert header.pixel_size == pytest.approx(original, rel=1e-4)
    (whole,) = read_frames(header, np.arange(1))
    rows = np.flatnonzero(source.micrograph == name)
    at = np.stack([source.metadata[f"rlnCoordinate{axis}"][rows] for axis in "XY"], 1)
    again = binned(
        torch.from_numpy(np.stack([remainder(b) for b in boxes(-whole, at, 64).numpy()])), 32
    )
    images = read_frames(
        read_header(project / source.images[0].split("@")[1]), np.arange(len(rows))
    )
    for one, other in zip(again.numpy(), images, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.999


def test_a_dose_sets_the_noise_and_a_larger_one_shows_more() -> None:
    few, many = (plan(settings(dose=d).simulate, 0, "globular", None) for d in (10.0, 40.0))
    assert many.snr == pytest.approx(4 * few.snr)
    assert few.noise.shot == pytest.approx(2 * many.noise.shot)
    assert 1 / (few.noise.shot * few.optics.pixel_size) ** 2 == pytest.approx(10)


def test_a_faint_project_ends(tmp_path: Path) -> None:
    (project,) = simulate(tmp_path / "faint", settings(images=40, snr=1e-4))
    assert len(read_truth(project)) == 40


def test_no_micrograph_gives_more_images_than_wanted(tmp_path: Path) -> None:
    (project,) = simulate(tmp_path / "day", settings(images=25, per_micrograph=10, snr=0.6))
    stacks = sorted(project.glob("Extract/job001/*.mrcs"))
    counts = [read_header(stack).count for stack in stacks]
    assert max(counts) == 10
    assert sum(counts) == 25


def test_junk_is_as_much_as_comes_out() -> None:
    shares = []
    for number in range(6):
        project = plan(settings(snr=0.3).simulate, number, "cyclic", None)
        kinds = np.concatenate([one.truth.kind for one in islice(picked(project, 0), 2)])
        shares.append((kinds != PARTICLE).mean())
    assert np.ptp(shares) > 0.15


def test_a_protein_that_does_not_fit_is_refused() -> None:
    structure = random_structure(np.random.default_rng(0), 300, "barrel")
    chosen = settings(pixel_size=2.0).simulate
    with pytest.raises(SettingsError, match="does not fit a box of 64 px"):
        plan(chosen, 0, "barrel", structure)


def test_particles_on_real_backgrounds_keep_those_backgrounds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "micrographs"
    folder.mkdir()
    grey = np.clip(rng.normal(128, 20, (420, 400)), 0, 255).astype(np.uint8)
    grey[:120, :120] = 10  # a crystal
    imsave(folder / "a.png", grey, check_contrast=False)
    back = read_background(folder / "a.png")
    assert abs(float(np.median(back))) < 0.05
    layers = real_layers(back, Frame(420, 400, 8.0, 25))
    assert (layers.what[20:100, 20:100] == ICE).mean() > 0.9
    assert (layers.what[200:, 200:] == ICE).mean() < 0.05
    chosen = settings(backgrounds=folder, pixel_size=8.0, box=48, snr=1.0)
    project = plan(chosen.simulate, 0, "globular", None)
    one = next(picked(project, 0))
    histogram = np.abs(one.pixels - np.median(one.pixels)) < 3
    assert histogram.mean() > 0.8
    assert (one.truth.kind == PARTICLE).sum() > 3
    with pytest.raises(InputError, match="holds no micrographs"):
        plan(settings(backgrounds=tmp_path).simulate, 0, "globular", None)
    imsave(folder / "a.png", np.zeros((100, 100), np.uint8), check_contrast=False)
    with pytest.raises(FormatError, match="is blank"):
        read_background(folder / "a.png")
