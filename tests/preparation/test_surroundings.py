"""Neighbours and edges: as by brute force, in box sizes, the same whichever rows are asked for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoray.formats.mrc import StackWriter
from cryoray.formats.source import Source, open_source
from cryoray.preparation.features import source_features
from cryoray.preparation.surroundings import EDGE_DISTANCE, NEIGHBOUR_DISTANCE, surroundings
from tests.formats.files import cs_particles, write_cs, write_cs_job
from tests.preparation.test_features import made_of

#: A box of 40 px of 2 Å is 80 px of a micrograph of 1 Å.
GEOMETRY = {
    "rlnImageSize": 40.0, "rlnImagePixelSize": 2.0, "rlnMicrographOriginalPixelSize": 1.0,
}  # fmt: skip


def placed(at: np.ndarray, micrograph: list[str], **known: float) -> Source:
    n = len(at)
    given = {**GEOMETRY, **known}
    columns = {name: np.full(n, value) for name, value in given.items()}
    source = made_of("particle", rlnCoordinateX=at[:, 0], rlnCoordinateY=at[:, 1], **columns)
    return replace(
        source,
        micrograph=np.array(micrograph, object),
        pixel_size=np.full(n, given["rlnImagePixelSize"], np.float32),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(1, 6), st.integers(0, 1000))
def test_the_nearest_is_the_nearest_of_all_in_the_micrograph(n, micrographs, seed):
    rng = np.random.default_rng(seed)
    at, which = rng.uniform(0, 4000, (n, 2)), rng.integers(0, micrographs, n)
    source = placed(at, [f"m{i}.mrc" for i in which])
    expected = np.full(n, np.nan)
    for i in range(n):
        others = [np.hypot(*(at[i] - at[j])) for j in range(n) if j != i and which[i] == which[j]]
        expected[i] = min(others, default=np.nan) / 80
    np.testing.assert_allclose(surroundings(source)[NEIGHBOUR_DISTANCE], expected, rtol=1e-6)


def test_a_particle_without_place_or_micrograph_is_no_neighbour():
    at = np.array([[0, 0], [80, 0], [np.nan, 0], [1, 0], [400, 0.0]])
    distance = surroundings(placed(at, ["a", "a", "a", "", "b"]))[NEIGHBOUR_DISTANCE]
    np.testing.assert_allclose(distance, [1, 1, np.nan, np.nan, np.nan])


def test_rows_that_are_not_asked_for_are_neighbours_too():
    at = np.array([[0, 0], [800, 0], [80, 0.0]])
    source = placed(at, ["a", "a", "a"])
    some = source_features(source, ["neighbour_distance"], rows=np.array([0]))
    np.testing.assert_allclose(some, np.log1p([[1.0]]), rtol=1e-6)


def test_the_edge_is_that_of_the_micrograph_the_source_describes():
    at = np.array([[160, 2000], [3840, 2000], [2000, 80], [2000, 2920], [-80, 5.0]])
    source = placed(at, ["a"] * 5, micrographWidth=4000.0, micrographHeight=3000.0)
    np.testing.assert_allclose(surroundings(source)[EDGE_DISTANCE], [2, 2, 1, 1, -1])
    source = placed(at, ["a"] * 5)
    assert np.isnan(surroundings(source)[EDGE_DISTANCE]).all()


def test_size_and_pixel_size_come_from_the_micrographs_themselves(tmp_path: Path) -> None:
    job = tmp_path / "MotionCorr/job002"
    job.mkdir(parents=True)
    with mrcfile.new(job / "a.mrc") as file:
        file.set_data(np.zeros((300, 400), np.float32))
        file.voxel_size = 2.0
    at = np.array([[80, 150], [100, 150], [100, 150.0]])
    names = ["MotionCorr/job002/a.mrc", "MotionCorr/job002/a.mrc", "MotionCorr/job002/gone.mrc"]
    source = replace(placed(at, names), path=tmp_path / "Extract/job003/particles.star")
    found = surroundings(source)
    # binned by two: a box is 40 px of the micrograph's, and the coordinates are in those
    np.testing.assert_allclose(found[NEIGHBOUR_DISTANCE], [0.5, 0.5, np.nan])
    np.testing.assert_allclose(found[EDGE_DISTANCE], [2, 2.5, np.nan])


def test_the_box_is_the_stack_s_where_the_source_does_not_say(tmp_path: Path) -> None:
    with StackWriter(tmp_path / "a.mrcs", 20, 20, "float32", 4.0) as stack:
        stack.append(np.zeros((1, 20, 20), np.float32))
    source = placed(np.array([[0, 0], [80, 0.0]]), ["a", "a"])
    metadata = {k: v for k, v in source.metadata.items() if k != "rlnImageSize"}
    unknown = np.full(2, np.nan, np.float32)
    for pixel_size, expected in ((source.pixel_size, 2), (unknown, 1)):
        part = replace(
            source, metadata=metadata, pixel_size=pixel_size, stacks=(tmp_path / "a.mrcs",)
        )
        np.testing.assert_allclose(surroundings(part)[NEIGHBOUR_DISTANCE], [expected] * 2)


def test_cryosparc_s_locations_and_shapes_tell_the_same(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path, 4)
    _, passed = cs_particles(4)  # by turns in two micrographs of 6000 × 4000 px, the last first
    passed["location/center_x_frac"] = [0.99, 0.26, 0.25, 0.25]
    write_cs(tmp_path / "J26/J26_passthrough_particles.cs", passed)
    found = surroundings(open_source(path))
    box = 8 * 1.5 / 0.75  # px of the micrograph
    np.testing.assert_allclose(found[NEIGHBOUR_DISTANCE] * box, [60, 4440, 60, 4440], rtol=1e-3)
    np.testing.assert_allclose(found[EDGE_DISTANCE] * box, [400, 400, 400, 60], rtol=1e-3)


def test_without_a_pixel_size_distances_are_missing_and_without_coordinates_there_are_none():
    source = placed(np.zeros((2, 2)), ["a", "a"], rlnMicrographOriginalPixelSize=np.nan)
    assert np.isnan(surroundings(source)[NEIGHBOUR_DISTANCE]).all()
    assert surroundings(made_of(rlnPhaseShift=[0.0])) == {}


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 5), st.floats(-500, 500), st.integers(0, 100))
def test_distances_do_not_depend_on_the_micrograph_s_sampling_or_origin(scale, shift, seed):
    at = np.random.default_rng(seed).uniform(0, 4000, (20, 2))
    here = surroundings(placed(at, ["a"] * 20))[NEIGHBOUR_DISTANCE]
    there = surroundings(
        placed(at * scale + shift, ["a"] * 20, rlnMicrographOriginalPixelSize=1 / scale)
    )[NEIGHBOUR_DISTANCE]
    np.testing.assert_allclose(here, there, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_million_particles_take_seconds_and_a_second_look_none():
    rng = np.random.default_rng(0)
    n = 1_000_000
    at = rng.uniform(0, 4000, (n, 2))
    source = placed(at, [f"MotionCorr/job002/{i:05d}.mrc" for i in rng.integers(0, 4000, n)])
    start = time.perf_counter()
    source_features(source, ["neighbour_distance", "edge_distance"], rows=np.arange(100))
    first = time.perf_counter() - start
    start = time.perf_counter()
    source_features(source, ["neighbour_distance", "edge_distance"], rows=np.arange(100))
    again = time.perf_counter() - start
    print(f"{first:.2f} s, then {1e3 * again:.1f} ms")
    assert first < 20
    assert again < first / 20


@pytest.mark.real
def test_real_particles_keep_the_pickers_least_distance(real_data: Path) -> None:
    source = open_source(real_data / "relion5-project/Extract/job009/particles.star")
    distance = surroundings(source)[NEIGHBOUR_DISTANCE]
    x, y = source.metadata["rlnCoordinateX"], source.metadata["rlnCoordinateY"]
    here = np.flatnonzero(source.micrograph == source.micrograph[0])
    apart = np.hypot(x[here, None] - x[here], y[here, None] - y[here])
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_allclose(distance[here], apart.min(1) * 0.885 / (64 * 3.54), rtol=1e-5)
    assert 0.4 < distance.min() < np.median(distance) < 1
