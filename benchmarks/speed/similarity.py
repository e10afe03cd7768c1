"""Does the similarity of class averages foretell the map? Selections of many qualities, with known truth."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.common import Row, main, result
from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume
from cryoray.maps import fsc, reconstruct, similarity
from cryoray.maps.particles import Particles, particles_of, read_images, summed
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate

BOX, PARTICLES, CLASSES = 64, 2400, 12
#: Share of the good that a selection loses, and of the bad that it lets through.
QUALITIES = [(lost, passed) for lost in (0.0, 0.2, 0.5) for passed in (0.02, 0.25, 0.5, 1.0)]


def classes_of(angles: np.ndarray) -> np.ndarray:
    """The nearest of some directions: what a 2D classification of good particles would find."""
    rot, tilt = np.radians(angles[:, 0]), np.radians(angles[:, 1])
    seen = np.stack([np.cos(rot) * np.sin(tilt), np.sin(rot) * np.sin(tilt), np.cos(tilt)], 1)
    both = fsc.half_sphere(CLASSES // 2)
    return (seen @ np.concatenate([both, -both]).T).argmax(1)


def truly(particles: Particles, kept: np.ndarray, truth: torch.Tensor) -> float:
    """Mean FSC with the true map, up to half of Nyquist, of the map of the kept."""
    sums = summed(particles[np.flatnonzero(kept)])
    volume = reconstruct.invert(torch.from_numpy(sums), BOX)
    mask, _ = fsc.automatic_mask(truth, particles.poses.pixel_size)
    return float(fsc.correlation(volume * mask, truth * mask)[1 : BOX // 4 + 1].mean())


def measure() -> dict[str, Any]:
    """Similarity over classes, and FSC with the true map, for each selection; their rank correlation."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        chosen = SimulateSettings(
            projects=1, images=PARTICLES, box=BOX, snr=0.05, junk=0.4, human_error=0.01, seed=5
        )
        folder = simulate(Path(made), Settings(simulate=chosen))[0]
        particles = particles_of(open_source(folder / "particles.star"))
        images = torch.from_numpy(read_images(particles))
        truth = torch.from_numpy(read_volume(folder / "truth.mrc")[0])
        good = np.array([line["keep"] == "1" for line in read_truth(folder)])
        with (folder / "labels.csv").open() as file:
            person = np.array([line["selected"] == "1" for line in csv.DictReader(file)])
        of_class = classes_of(particles.poses.angles)
        whole = truly(particles, person, truth)
        rows: list[Row] = []
        for number, (lost, passed) in enumerate(QUALITIES):
            rng = np.random.default_rng(number)
            kept = np.where(good, rng.random(len(good)) >= lost, rng.random(len(good)) < passed)
            alike = [
                similarity.class_similarity(
                    c, images[mine], particles.poses[mine], person[mine], kept[mine]
                )
                for c in range(CLASSES)
                for mine in [np.flatnonzero(of_class == c)]
            ]
            found = [one for one in alike if one is not None]
            rows.append(
                {
                    "selection": f"{lost:.0%} of good lost, {passed:.0%} of bad kept",
                    "MSE": float(np.mean([one.similarity.mse for one in found])),
                    "MSE at random": float(np.mean([one.chance.mse for one in found])),
                    "SSIM": float(np.mean([one.similarity.ssim for one in found])),
                    "FRC": float(np.mean([one.similarity.frc for one in found])),
                    "FSC with truth, less the person's": truly(particles, kept, truth) - whole,
                }
            )
    change = np.array([row["FSC with truth, less the person's"] for row in rows])
    excess = np.array([row["MSE"] - row["MSE at random"] for row in rows])
    columns = {name: np.array([row[name] for row in rows]) for name in ("MSE", "SSIM", "FRC")}
    columns["MSE less that at random"] = excess
    notes = [
        f"rank correlation (Spearman) over {len(rows)} selections of {name} with the change of the FSC:"
        f" {spearmanr(values, change).statistic:+.2f}"
        for name, values in columns.items()
    ]
    notes.append("FSC with truth: mean up to half of Nyquist, inside a mask of the true map")
    return result(
        f"Similarity of {CLASSES} class averages and the map's FSC with the truth, {PARTICLES:,} particles",
        rows,
        ratios=(),
        notes=notes,
    )


if __name__ == "__main__":
    main(measure)
