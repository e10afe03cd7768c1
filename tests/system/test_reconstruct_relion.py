"""RELION's own program is the judge of our maps, from the same STAR file."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume
from cryoray.maps import fsc, reconstruct
from cryoray.maps.particles import particles_of, read_images
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import simulate

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("relion_reconstruct"), reason="no RELION here"),
]


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("group", ["C1", "D2"])
def test_maps_are_relions_to_nine_tenths_of_nyquist(group: str, tmp_path: Path) -> None:
    chosen = SimulateSettings(projects=1, images=1500, box=64, snr=0.2, junk=0.2, seed=4)
    folder = simulate(tmp_path / "day", Settings(simulate=chosen))[0]
    particles = particles_of(open_source(folder / "particles.star"))
    sums = reconstruct.empty(64)
    reconstruct.insert(sums, torch.from_numpy(read_images(particles)), particles.poses)
    ours = reconstruct.invert(sums, 64, reconstruct.symmetry_operators(group))
    run(
        folder, *f"relion_reconstruct --i particles.star --o theirs.mrc --ctf --sym {group}".split()
    )
    theirs, _ = read_volume(folder / "theirs.mrc")
    curve = fsc.correlation(ours, torch.from_numpy(theirs))
    print(curve.round(4))
    assert curve[1 : int(0.9 * 32) + 1].min() > 0.99


@pytest.mark.parametrize("group", ["C3", "D2", "D5", "T", "O", "I"])
def test_symmetry_groups_are_relions(group: str, tmp_path: Path) -> None:
    shown = run(
        tmp_path, *f"relion_refine --o {tmp_path / 'x'} --sym {group} --print_symmetry_ops".split()
    )
    matrices = re.findall(r"R\(\d+\)=\s*((?:[-+.\de]+\s+){9})", shown)
    theirs = np.array([text.split() for text in matrices], float).reshape(-1, 3, 3)
    ours = reconstruct.symmetry_operators(group)
    assert len(ours) == len(theirs)
    for operator in theirs:
        assert np.abs(ours - operator).max((1, 2)).min() < 1e-4
