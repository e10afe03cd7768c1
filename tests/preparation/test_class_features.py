"""Class averages measured: as defined, in units that travel, the same whichever rows are asked for."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cryoray.formats.mrc import StackWriter
from cryoray.formats.source import Source, open_source
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.class_features import (
    COUNTED,
    MEASURED,
    class_columns,
    rank,
    robust_z,
)
from cryoray.preparation.class_relations import RELATED
from cryoray.preparation.features import feature_names, source_features
from cryoray.preparation.plan import plan
from tests import examples
from tests.formats.files import write_cs, write_cs_job

pytestmark = pytest.mark.long

#: Side and pixel size of the classes made here: at 4 Å/px nothing is resampled.
SIDE, PIXEL = 48, 4.0
AXIS = np.arange(SIDE) - SIDE // 2
RADII = np.hypot(AXIS[:, None], AXIS)
CIRCLE = RADII <= 20
DIAMETER = 2 * 20 * PIXEL


def discs(n: int = 8, seed: int = 0) -> np.ndarray:
    """float32 [n, SIDE, SIDE]: discs of different size and height in faint noise, masked at 20 px."""
    rng = np.random.default_rng(seed)
    noise = 0.05 * rng.normal(size=(n, SIDE, SIDE))
    heights = np.linspace(1, 2, n)[:, None, None]
    sizes = np.linspace(6, 13, n)[:, None, None]
    return np.where(CIRCLE, heights * (sizes >= RADII) - 0.2 + noise, 0).astype(np.float32)


def job(
    folder: Path,
    images: np.ndarray,
    *,
    numbers: list[int] | None = None,
    diameter: float | None = DIAMETER,
    model: str = "",
) -> Source:
    """A RELION 2D classification: its classes, model, optimiser, and where its particles went."""
    folder.mkdir(parents=True, exist_ok=True)
    n, side = len(images), images.shape[1]
    with StackWriter(folder / "run_it025_classes.mrcs", side, side, "float32", PIXEL) as stack:
        stack.append(images)
    share = np.linspace(0.01, 0.2, n)
    rows = "\n".join(
        f"{i + 1:06d}@run_it025_classes.mrcs {share[i]:.6f} {40 - i:.3f} {3 + i % 4} 999.0"
        for i in range(n)
    )
    (folder / "run_it025_model.star").write_text(
        f"""
data_model_general

_rlnOriginalImageSize {side}
_rlnPixelSize {PIXEL}

data_model_classes

loop_
_rlnReferenceImage #1
_rlnClassDistribution #2
_rlnEstimatedResolution #3
_rlnAccuracyRotations #4
_rlnAccuracyTranslationsAngst #5
{model or rows}
"""
    )
    if diameter is not None:
        (folder / "run_it025_optimiser.star").write_text(
            f"\ndata_optimiser_general\n\n_rlnParticleDiameter {diameter}\n"
        )
    if numbers is not None:
        lines = "\n".join(f"{i + 1:06d}@x.mrcs {number}" for i, number in enumerate(numbers))
        (folder / "run_it025_data.star").write_text(
            f"\ndata_particles\n\nloop_\n_rlnImageName #1\n_rlnClassNumber #2\n{lines}\n"
        )
    return open_source(folder / "run_it025_model.star", "class2d")


def of(source: Source, *names: str, **more: object) -> np.ndarray:
    return source_features(source, names, **more)  # type: ignore[arg-type]


def test_moments_are_those_of_scipy_in_the_job_s_unit_of_grey(tmp_path: Path) -> None:
    images = discs()
    found = class_columns(job(tmp_path, images))
    levelled = images - images[:, ~CIRCLE].mean(1)[:, None, None]
    unit = np.median(levelled[:, CIRCLE].std(1))
    ring = CIRCLE & (RADII >= 19)
    for i, image in enumerate(levelled):
        pixels = image[ring]
        expected = [
            pixels.mean() / unit,
            pixels.std() / unit,
            stats.skew(pixels),
            stats.kurtosis(pixels, fisher=False),
        ]
        got = [found[f"ring{name}"][i] for name in ("Mean", "Stddev", "Skew", "Kurt")]
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_what_is_protein_is_found_and_measured(tmp_path: Path) -> None:
    images = discs()
    found = class_columns(job(tmp_path, images))
    area = np.array([np.count_nonzero(s >= RADII) for s in np.linspace(6, 13, 8)])
    # the filter that finds it spreads 25 Å: about a pixel and a half of the outline
    ratio = found["proteinArea"] * np.count_nonzero(CIRCLE) / area
    assert ((ratio > 0.95) & (ratio < 1.5)).all()
    assert (np.diff(found["proteinArea"]) > 0).all()
    assert (np.diff(found["proteinMean"]) > 0).all()
    assert (found["solventMean"] < 0).all()
    assert (found["edgeSignal"] == 0).all()
    # the outline of a disc drawn in pixels, and a little more where noise frays it
    assert ((found["proteinCAR"] > 0.9) & (found["proteinCAR"] < 1.35)).all()
    np.testing.assert_allclose(
        found["relativeSignalIntensity"],
        found["proteinSum"] - found["solventMean"] * found["proteinArea"],
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        found["proteinSum"], found["proteinMean"] * found["proteinArea"], rtol=1e-9
    )


def test_islands_away_from_the_middle_are_scattered_signal_and_at_the_edge_edge_signal(
    tmp_path: Path,
) -> None:
    y, x = AXIS[:, None], AXIS
    middle = np.hypot(y, x) <= 7
    island = np.hypot(y - 10, x - 9) <= 3  # its inner part lies within 0.6 of the radius
    bar = (np.abs(y) <= 6) & (x >= 0)
    none, beside, through = middle, middle | island, middle | bar
    images = np.where(CIRCLE, np.stack([none, beside, through]) - 0.1, 0.0).astype(np.float32)
    found = class_columns(job(tmp_path, images))
    assert found["scatteredSignal"][0] == 0
    assert 0.05 < found["scatteredSignal"][1] < 0.4
    assert found["edgeSignal"][0] == found["edgeSignal"][1] == 0
    assert found["proteinCAR"][2] > found["proteinCAR"][0]
    # only pixels within the circle can be protein; the filter widens the bar by two
    edge, wide = np.round(RADII) == 20, (np.abs(y) <= 8) & (x >= 0)
    lowest, highest = (
        np.count_nonzero(edge & some & CIRCLE) / np.count_nonzero(edge) for some in (bar, wide)
    )
    assert 0 < lowest <= found["edgeSignal"][2] <= highest


def test_entropy_is_that_of_the_grey_levels(tmp_path: Path) -> None:
    images = discs()
    found = class_columns(job(tmp_path, images))
    for image, entropy in zip(images, found["totalEntropy"], strict=True):
        counts = np.histogram(image.astype(np.float64), bins=64)[0]
        assert entropy == pytest.approx(stats.entropy(counts, base=2), abs=0.02)


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-1e2, 1e2))
def test_neither_grey_scale_nor_grey_level_of_a_job_changes_a_number(scale, level):
    images = discs().astype(np.float64)
    here = measured(images)
    np.testing.assert_allclose(
        measured(scale * (images + level)), here, rtol=2e-3, atol=2e-3 * np.abs(here).max()
    )


def measured(images: np.ndarray, **more: object) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        source = job(Path(folder), images.astype(np.float32))
        found = class_columns(source, **more)  # type: ignore[arg-type]
    return np.stack([found[name] for name in (*MEASURED, *RELATED)])


def test_each_image_has_its_own_level_as_pictures_of_classes_do():
    images = discs()
    levels = np.linspace(-30, 30, len(images), dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(measured(images + levels), measured(images), rtol=0.01, atol=0.01)


def test_dark_protein_is_measured_as_bright_protein_is_when_told():
    np.testing.assert_allclose(measured(-discs(), invert=True), measured(discs()), atol=1e-6)


def test_what_the_job_s_files_say_is_counted(tmp_path: Path) -> None:
    numbers = [1] * 5 + [3] * 200 + [8] * 20 + [99]
    source = job(tmp_path, discs(), numbers=numbers)
    found = class_columns(source)
    np.testing.assert_array_equal(found["particleNr"], [5, 0, 200, 0, 0, 0, 0, 20])
    share = source.metadata["rlnClassDistribution"]
    resolution = source.metadata["rlnEstimatedResolution"]
    np.testing.assert_allclose(
        found["weightedResolution"], 1 / resolution**2 / np.log(np.maximum(226 * share, 10))
    )
    np.testing.assert_allclose(found["relativeResolution"], resolution / (SIDE * PIXEL))


def test_a_stack_of_classes_alone_is_measured_like_its_model(tmp_path: Path) -> None:
    source = job(tmp_path, discs(), numbers=[1, 2])
    alone = open_source(tmp_path / "run_it025_classes.mrcs", "class2d")
    for name in (*MEASURED, "particleNr"):
        np.testing.assert_array_equal(class_columns(alone)[name], class_columns(source)[name])


def test_the_circle_is_the_job_s_else_the_given_else_where_the_classes_are_masked(
    tmp_path: Path,
) -> None:
    images = discs()
    stated = class_columns(job(tmp_path / "a", images), 30.0)["proteinArea"]
    without = job(tmp_path / "b", images, diameter=None)
    np.testing.assert_array_equal(class_columns(without, DIAMETER)["proteinArea"], stated)
    assert (class_columns(without, 0.8 * DIAMETER)["proteinArea"] > stated * 1.3).all()
    np.testing.assert_allclose(class_columns(without)["proteinArea"], stated, rtol=0.1)
    (tmp_path / "b/job.star").write_text(
        "\ndata_job\n\n_rlnJobTypeLabel relion.class2d\n\ndata_joboptions_values\n\nloop_\n"
        f"_rlnJobOptionVariable #1\n_rlnJobOptionValue #2\nfn_img x.star\nparticle_diameter {DIAMETER}\n"
    )
    np.testing.assert_array_equal(class_columns(without, 30.0)["proteinArea"], stated)


def test_a_flat_class_and_one_that_is_not_there_are_missing_and_have_no_rank(
    tmp_path: Path,
) -> None:
    images = discs()
    images[2] = 0
    images[3] = 7.5
    images[4, 5, 5] = np.nan
    model = "\n".join(
        f"{i:06d}@run_it025_classes.mrcs 0.1 20 5 5" for i in (*range(1, 9), 10)
    )  # the stack holds 8
    source = job(tmp_path, images, model=model + "\n000001@gone.mrcs 0.1 20 5 5")
    assert len(source) == 10
    values = of(source, "protein_mean", "protein_mean_rank", "protein_mean_z", "total_entropy")
    lost = [2, 3, 4, 8, 9]
    assert np.isnan(values[lost]).all()
    assert np.isfinite(np.delete(values, lost, axis=0)).all()
    np.testing.assert_allclose(np.delete(values[:, 1], lost), [0, 0.25, 0.5, 0.75, 1])


def test_any_rows_have_the_features_that_all_rows_have(tmp_path: Path) -> None:
    numbers = [1, 1, 2, 3, 3, 3, 5, 7]
    whole = source_features(job(tmp_path, discs(70), numbers=numbers), None)
    for rows in ([3], [69, 2, 5], range(40, 70)):
        # as another process would, without what the whole source left behind
        source = open_source(tmp_path / "run_it025_model.star", "class2d")
        some = source_features(source, None, rows=np.array(rows))
        np.testing.assert_array_equal(some, whole[list(rows)])


def test_classes_are_compared_with_those_of_their_own_job() -> None:
    values = np.array([5, 1, 2, 3, 4, 50, 10, 20, 30, 40, 7.0])
    of_job = np.array([0] * 5 + [1] * 5 + [2])
    np.testing.assert_allclose(
        rank(values, of_job), [1, 0, 0.25, 0.5, 0.75, 1, 0, 0.25, 0.5, 0.75, np.nan]
    )
    deviation = stats.median_abs_deviation([1, 2, 3, 4, 5], scale="normal")
    np.testing.assert_allclose(
        robust_z(values, of_job)[:5], (values[:5] - 3) / deviation, rtol=1e-4
    )
    assert np.isnan(robust_z(values, of_job)[10])


jobs_of_values = st.lists(st.integers(-50, 50), min_size=5, max_size=40).map(np.array)


@given(jobs_of_values)
def test_a_rank_is_scipy_s_and_survives_any_growing_transform(values):
    job_of = np.zeros(len(values), int)
    ranks = rank(values.astype(float), job_of)
    if len(set(values.tolist())) > 1:
        np.testing.assert_allclose(ranks, (stats.rankdata(values) - 1) / (len(values) - 1))
    else:
        assert np.isnan(ranks).all()
    for grow in (np.exp, np.arctan, lambda x: x**3 + x):
        np.testing.assert_array_equal(rank(grow(values / 20), job_of), ranks)
    np.testing.assert_allclose(rank(-values.astype(float), job_of), 1 - ranks)


@given(jobs_of_values, st.floats(0.01, 100), st.floats(-1000, 1000))
def test_a_robust_z_score_survives_any_scale_and_shift(values, scale, shift):
    job_of = np.zeros(len(values), int)
    here = robust_z(values.astype(float), job_of)
    np.testing.assert_allclose(robust_z(scale * values + shift, job_of), here, atol=1e-6)


def test_where_half_are_equal_the_mean_deviation_is_the_scale() -> None:
    z = robust_z(np.array([3, 3, 3, 3, 5, 4.0]), np.zeros(6, int))
    np.testing.assert_allclose(z, np.array([0, 0, 0, 0, 2, 1]) / (1.2533 * 3 / 6))


def test_missing_values_take_no_rank_and_too_few_have_none() -> None:
    nan = np.nan
    one = np.zeros(6, int)
    np.testing.assert_allclose(
        rank(np.array([3, nan, 1, 2, 5, 4]), one), [0.5, nan, 0, 0.25, 1, 0.75]
    )
    assert np.isnan(rank(np.array([3, nan, nan, 2, 5, 4]), one)).all()
    assert np.isnan(robust_z(np.array([3, nan, nan, 2, 5, 4]), one)).all()
    assert np.isnan(robust_z(np.full(6, 3.3), one)).all()
    assert np.isnan(rank(np.arange(6.0), one - 1)).all()  # of no stack


def test_accuracies_in_pixels_become_angstrom(tmp_path: Path) -> None:
    source = job(tmp_path, discs())
    old = {**source.metadata, "rlnAccuracyTranslations": np.array([2.0, 999, *[1.0] * 6])}
    del old["rlnAccuracyTranslationsAngst"]
    values = of(replace(source, metadata=old), "accuracy_translations")
    np.testing.assert_allclose(values[:3, 0], np.log([8, np.nan, 4]), rtol=1e-6)


def test_a_cryosparc_job_s_classes_are_measured_and_ranked(tmp_path: Path) -> None:
    images = discs(6)
    write_cs_job(tmp_path, 6)
    table = np.load(tmp_path / "J26/J26_020_class_averages.cs")
    table = np.repeat(table[:1], 6)
    table["uid"], table["blob/idx"] = np.arange(1, 7), np.arange(6)
    table["blob/shape"], table["blob/psize_A"] = (SIDE, SIDE), PIXEL
    table["blob/res_A"] = [30, 25, 20, 15, 10, 8]
    write_cs(tmp_path / "J26/J26_020_class_averages.cs", table)
    with StackWriter(
        tmp_path / "J26/J26_020_class_averages.mrc", SIDE, SIDE, "float32", PIXEL
    ) as stack:
        stack.append(images)
    source = open_source(tmp_path / "J26/J26_020_class_averages.cs", "class2d")
    values = of(source, "protein_mean_rank", "estimated_resolution_rank", diameter=DIAMETER)
    np.testing.assert_allclose(values, np.stack([np.arange(6), np.arange(6)[::-1]], 1) / 5)
    relion = of(job(tmp_path / "relion", images), "protein_mean")
    np.testing.assert_array_equal(of(source, "protein_mean", diameter=DIAMETER), relion)


def test_an_ensemble_that_learned_the_first_features_still_judges(tmp_path: Path) -> None:
    """Features are looked up by name: those that came since change nothing for it."""
    ensemble = examples.save_ensemble(tmp_path / "old", "class2d")
    assert ensemble.features == examples.CLASS_FEATURES
    loaded = Ensemble.load(tmp_path / "old")
    source = job(tmp_path / "job", discs())
    preparation = loaded.preparation
    planned = plan(source, preparation, 64)
    assert planned.features == examples.CLASS_FEATURES
    values = planned.ranges[0].features
    np.testing.assert_allclose(values[:, 0], np.log(np.linspace(0.01, 0.2, 8)), rtol=1e-4)
    np.testing.assert_allclose(values[:, 1], np.log(40 - np.arange(8)), rtol=1e-4)
    images = np.zeros((8, examples.BOX, examples.BOX), np.float32)
    assert len(loaded.judge(images, values).score) == 8


def test_every_class_feature_but_what_preparation_adds_is_compared_within_the_job() -> None:
    names = feature_names("class2d")
    plain = [name for name in names if not name.endswith(("_rank", "_z"))]
    assert set(plain[:2]) == {"prepared_pixel_size", "particle_diameter"}
    assert {f"{name}{how}" for name in plain[2:] for how in ("_rank", "_z")} == set(names) - set(
        plain
    )
    assert len(plain) - 2 == 4 + len(MEASURED) + len(RELATED) + len(COUNTED)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "labels"), [("class2d_job013.mrcs", "relion4"), ("TcdA1_gatm_job445_R.mrcs", "human")]
)
def test_in_real_classes_what_was_selected_is_bright_and_even(
    real_data: Path, name: str, labels: str
) -> None:
    folder = real_data / f"class-averages-{labels}"
    table = np.genfromtxt(
        folder / "labels.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    table = table[table["stack"] == name]
    selected = table["selected"][np.argsort(table["index"])].astype(bool)
    values = of(open_source(folder / name, "class2d"), "protein_mean", "protein_skew")
    for column, most in zip(values.T, (True, False), strict=True):
        auroc = stats.mannwhitneyu(column[selected], column[~selected]).statistic / (
            np.count_nonzero(selected) * np.count_nonzero(~selected)
        )
        assert auroc > 0.75 if most else auroc < 0.3
