"""Reconstruction from particles with poses: beside relion_reconstruct, and over one and two workers."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.common import Row, command, main, result
from cryoray.engine import runtime
from cryoray.engine.reduce import OnRay
from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume
from cryoray.maps import fsc, reconstruct
from cryoray.maps.particles import particles_of, summed
from cryoray.settings import RuntimeSettings, Settings, SimulateSettings
from cryoray.simulation import simulate

BOX, PARTICLES = 96, 3000


def measure() -> dict[str, Any]:
    """Seconds from the STAR file to the map, and how far it agrees with RELION's."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        chosen = SimulateSettings(projects=1, images=PARTICLES, box=BOX, snr=0.1, junk=0.1, seed=1)
        folder = simulate(Path(made), Settings(simulate=chosen))[0]
        star = folder / "particles.star"
        maps: dict[str, np.ndarray] = {}

        def add(name: str, inserted: float | None, seconds: float) -> None:
            rows.append(
                {
                    "what": name,
                    "seconds": seconds,
                    "particles inserted, seconds": inserted,
                    "particles/s": round(PARTICLES / seconds),
                }
            )

        if shutil.which("relion_reconstruct"):
            words = "relion_reconstruct --i particles.star --o theirs.mrc --ctf"
            add("relion_reconstruct", None, command(*words.split(), cwd=folder).seconds)
            maps["relion"], _ = read_volume(folder / "theirs.mrc")
        torch.set_num_threads(1)
        begun = time.perf_counter()
        particles = particles_of(open_source(star))
        sums = summed(particles)
        inserted = time.perf_counter() - begun
        maps["cryoray"] = reconstruct.invert(torch.from_numpy(sums), BOX).numpy()
        add("cryoray, one thread", inserted, time.perf_counter() - begun)
        for workers in (1, 2):
            there = RuntimeSettings(cpus=workers, gpus=0, dashboard=False)
            reducer = OnRay(there, -(-PARTICLES // workers))
            few = particles[np.arange(20 * workers)]
            ray.get(OnRay(there, 20).accumulate(few))  # workers start and import
            begun = time.perf_counter()
            total = reducer.accumulate(particles_of(open_source(star)))
            assert total is not None
            ray.wait([total])
            inserted = time.perf_counter() - begun
            reducer.maps([total], BOX, np.eye(3)[None])
            add(
                f"cryoray on Ray, {workers} worker{'s' * (workers > 1)}",
                inserted,
                time.perf_counter() - begun,
            )
            runtime.disconnect()
    notes = ["each on cores as named; Ray's workers were started beforehand"]
    if "relion" in maps:
        curve = fsc.correlation(*(torch.from_numpy(maps[name]) for name in ("cryoray", "relion")))
        worst = curve[1 : int(0.9 * BOX / 2) + 1].min()
        notes.append(f"least FSC between cryoray's map and RELION's up to 0.9 Nyquist: {worst:.4f}")
    return result(
        f"A map of {BOX}³ voxels from {PARTICLES:,} particles, C1, with CTF", rows, notes=notes
    )


if __name__ == "__main__":
    main(measure)
