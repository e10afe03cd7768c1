"""Simulated micrographs beside real ones: sheets of pictures to look at, and radial power spectra in figures.

    python -m benchmarks.accuracy.simulated_micrographs [--out DIR] [--real DIR]… [--projects N] [--box PX]

Prints spectra over the level at high frequency and boxes per second of CPU time; with ``--out`` it writes
``micrographs.png`` (picks coloured by what lies under them) and ``boxes.png`` (a row for each kind).
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from cryoray.settings import SimulateSettings
from cryoray.simulation.backgrounds import find_backgrounds, read_background
from cryoray.simulation.junk import KINDS, PARTICLE
from cryoray.simulation.phantom import families
from cryoray.simulation.picked import Picked, Project, picked, plan

FREQUENCIES = np.array([0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
COLOURS = dict(
    zip(
        (PARTICLE, *KINDS),
        ("lime", "dodgerblue", "red", "orange", "magenta", "yellow", "cyan", "white"),
        strict=True,
    )
)
TILE, THUMB = 480, 72


def spectrum(image: np.ndarray) -> np.ndarray:
    """Mean power in rings about `FREQUENCIES` (1/px) over that of the highest four, [13]."""
    height, width = image.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    rings = [power[(k > 0.85 * f) & (k < 1.15 * f + 0.001)].mean() for f in FREQUENCIES]
    return np.array(rings) / np.mean(rings[-4:])


def line(name: str, values: np.ndarray) -> None:
    """One row of the table."""
    print(f"{name:34.34s}", " ".join(f"{value:8.2f}" for value in values), flush=True)


def grey(image: np.ndarray) -> Image.Image:
    """As 8 bits between the half per cents."""
    low, high = np.percentile(image, [0.5, 99.5])
    return Image.fromarray(
        (np.clip((image - low) / (high - low + 1e-9), 0, 1) * 255).astype(np.uint8)
    )


def with_picks(project: Project, one: Picked) -> np.ndarray:
    """A micrograph with its picks in colour, [TILE, TILE, 3]."""
    picture = grey(one.pixels).convert("RGB")
    draw, radius = ImageDraw.Draw(picture), project.frame.diameter / 2
    for (x, y), kind in zip(one.picks.places, one.truth.kind, strict=True):
        edge = max(1, picture.width // TILE)
        draw.ellipse(
            [x - radius, y - radius, x + radius, y + radius], outline=COLOURS[kind], width=edge
        )
    picture.thumbnail((TILE, TILE))
    tile = Image.new("RGB", (TILE, TILE))
    tile.paste(picture)
    return np.asarray(tile)


def rows_of_boxes(some: list[Picked], number: int = 6) -> np.ndarray:
    """Boxes of each kind, a row for each."""
    rows = []
    for kind in COLOURS:
        images = torch.cat([one.images[torch.from_numpy(one.truth.kind == kind)] for one in some])
        tiles = [np.asarray(grey(i.numpy()).resize((THUMB, THUMB))) for i in images[:number]]
        tiles += [np.zeros((THUMB, THUMB), np.uint8)] * (number - len(tiles))
        rows.append(np.concatenate(tiles, 1))
    return np.concatenate(rows)


def main() -> None:
    """Simulate, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--real", type=Path, action="append", default=[])
    parser.add_argument("--projects", type=int, default=8)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--version", default="raw")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    line("spatial frequency (1/px)", FREQUENCIES)
    for folder in given.real:
        for path in find_backgrounds(folder):
            line(f"real: {path.name}", spectrum(read_background(path)))
    tiles, sheets, made, spent, spectra = [], [], 0, 0.0, []
    for number in range(given.projects):
        snr = float(np.exp(np.random.default_rng(number).uniform(np.log(0.04), np.log(0.8))))
        chosen = SimulateSettings(
            box=given.box, snr=snr, version=given.version, micrographs=True, seed=given.seed
        )
        family = next(islice(families(given.seed), number, None))
        project = plan(chosen, number, family, None)
        began = time.process_time()
        some = list(islice(picked(project, given.seed), 4))
        spent, made = spent + time.process_time() - began, made + sum(len(s.images) for s in some)
        spectra.append(spectrum(some[0].pixels))
        line(f"simulated: {number} {family} {project.optics.pixel_size:.2f} Å/px", spectra[-1])
        tiles.append(with_picks(project, some[0]))
        sheets.append(rows_of_boxes(some))
    line("simulated: median", np.median(spectra, 0))
    print(f"{made / spent:.0f} boxes of {given.box} px a second of CPU time, phantoms not counted")
    if given.out is None:
        return
    given.out.mkdir(parents=True, exist_ok=True)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 4)
    lines = [np.concatenate(tiles[i : i + 4], 1) for i in range(0, len(tiles), 4)]
    Image.fromarray(np.concatenate(lines)).save(given.out / "micrographs.png")
    Image.fromarray(np.concatenate(sheets[:4], 1)).save(given.out / "boxes.png")


if __name__ == "__main__":
    main()
