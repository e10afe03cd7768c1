"""Sums that several made add up to those of one."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from cryoray.engine.reduce import ByThreads, OnRay
from cryoray.formats.source import open_source
from cryoray.maps.particles import Particles, particles_of, summed
from cryoray.settings import RuntimeSettings, Settings, SimulateSettings
from cryoray.simulation import simulate


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> Particles:
    chosen = SimulateSettings(projects=1, images=60, box=32, snr=0.5, seed=2)
    folder = simulate(tmp_path_factory.mktemp("day"), Settings(simulate=chosen))[0]
    return particles_of(open_source(folder / "particles.star"))


@pytest.mark.ray
def test_a_tree_of_tasks_adds_up_what_one_task_does(
    particles: Particles, ray_cluster: RuntimeSettings
) -> None:
    reducer = OnRay(ray_cluster, per_task=7)
    alone = summed(particles)
    near = pytest.approx(alone, abs=1e-4 * float(np.abs(alone).max()))
    assert ray.get(reducer.accumulate(particles)) == near
    assert reducer.accumulate(particles[np.arange(0)]) is None


def test_threads_add_up_what_one_does(
    particles: Particles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoray.engine.reduce._FEWEST", 7)
    monkeypatch.setattr("cryoray.engine.local.cores", lambda: 4)
    alone = summed(particles)
    near = pytest.approx(alone, abs=1e-4 * float(np.abs(alone).max()))
    reducer = ByThreads()
    assert reducer.accumulate(particles) == near
    parts = [reducer.accumulate(particles[np.arange(first, 60, 2)]) for first in (0, 1)]
    assert parts[0] is not None
    before = parts[0].copy()
    assert reducer.total([*parts, None]) == near
    np.testing.assert_array_equal(parts[0], before)
    assert reducer.accumulate(particles[np.arange(0)]) is None
    assert reducer.total([None, None]) is None
