"""Classes that RELION itself makes of simulated collections: what is true of each of them is counted.

How a class of RELION looks follows from its expectation maximisation, whose halos, spokes and mixed
classes no formula gives. So ``relion_refine`` classifies simulated particles, whose truth is known. A class
is good if most of its particles are, and bad if few of them are; what is between teaches nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from cryoray.errors import CryorayError
from cryoray.formats.class_selection import model_of
from cryoray.formats.files import write_csv
from cryoray.formats.relion import VERSION, loop
from cryoray.formats.star import parse
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate

PROGRAM = "relion_refine"
#: Options of every job: few particles in small boxes, coarse steps, one process.
OPTIONS = (
    *("--ctf", "--flatten_solvent", "--zero_mask", "--norm", "--scale", "--oversampling", "1"),
    *("--offset_step", "2", "--pool", "30", "--preread_images"),
    *("--dont_combine_weights_via_disc", "--pad", "1"),
)
#: Those of every job of 2D classes beside them.
OPTIONS_2D = ("--tau2_fudge", "2", "--psi_step", "12")
_SEED = 520_000
#: Iterations of a job, and those whose classes are learned from: people look before the end, too.
_ITERATIONS, _LOOKED_AT = 12, (6, 9, 12)
#: A class of fewer particles shows noise, and is never taken for a good one; nor is one whose share of good
#: ones lies between these taken for a bad one: it may well look like protein, since junk averages out.
_FEWEST_PARTICLES, _UNSURE = 10, (1 / 3, 1 / 2)
#: What a refinement finds out.
_POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")


def there_is_relion() -> bool:
    """Whether its program can be run here."""
    return shutil.which(PROGRAM) is not None


def class2d_job(folder: Path, number: int) -> Path:
    """A Class2D job of a simulated collection of another random structure, with labels by counting.

    Args:
        folder: of the collection and the job; a job that is there is not done again.
        number: of the structure, from 0 on: it makes all that is random.

    Returns:
        folder of the job: of some iterations ``run_itNNN_model.star``, the classes and ``…_data.star``,
        and of all of these ``labels.csv``: 1 selects a class, and 0 does not; an empty field says nothing.

    Raises:
        CryorayError: RELION failed; the message is what it said.
    """
    out = folder / "class2d"
    rng = np.random.default_rng((_SEED, number))
    made = SimulateSettings(
        projects=1,
        first=number + 1,
        images=int(rng.integers(300, 701)),
        box=int(rng.choice([40, 48])),
        snr=round(float(np.exp(rng.uniform(np.log(0.06), np.log(0.5)))), 3),
        junk=round(float(rng.uniform(0.1, 0.6)), 2),
        human_error=0.0,
        seed=_SEED,
    )
    (project,) = simulate(folder, Settings(simulate=made))
    (pixel_size,) = parse(project / "particles.star")["optics"].numbers("rlnImagePixelSize")
    diameter = rng.uniform(0.65, 0.9) * made.box * pixel_size
    if not (out / "labels.csv").is_file():
        refine(
            out,
            project,
            np.arange(made.images),
            *("--particle_diameter", f"{diameter:.0f}", "--K", str(rng.integers(8, 17))),
            *("--offset_range", str(rng.integers(3, 6)), "--iter", str(_ITERATIONS)),
            *("--random_seed", str(number + 1), *OPTIONS_2D),
        )
    labels: list[tuple[str, int, int | str]] = []
    for iteration in range(_ITERATIONS + 1):
        run = f"run_it{iteration:03d}"
        if iteration not in _LOOKED_AT:
            for path in out.glob(f"{run}_*"):
                path.unlink()
            continue
        selected = labelled(*counted(out / f"{run}_data.star", project))
        labels += [
            (f"{run}_classes.mrcs", i + 1, "" if label < 0 else label)
            for i, label in enumerate(selected.tolist())
        ]
    # Written last: it says that the job is done.
    write_csv(out / "labels.csv", ("stack", "index", "selected"), labels)
    return out


def labelled(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Labels of classes by what their particles are: 1 keep, 0 discard, -1 none.

    Args:
        good: int64 [classes], particles that a person would keep.
        bad: int64 [classes], the others.
    """
    share = good / np.maximum(good + bad, 1)
    label = (share > _UNSURE[1]).astype(np.int8)
    few = good + bad < _FEWEST_PARTICLES
    label[(share > _UNSURE[0]) & (few | (label == 0))] = -1
    return label


def refine(out: Path, project: Path, rows: np.ndarray, *options: str) -> None:
    """Run ``relion_refine`` on particles of a simulated project, of whose poses it is told nothing.

    Args:
        out: folder of the job; what is there goes.
        project: the simulated project, in which RELION runs.
        rows: int64, those of its particles.
        options: beside `OPTIONS`.

    Raises:
        CryorayError: it failed; the message is what it said.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    without_poses(out / "particles.star", project / "particles.star", rows)
    # Relative, since RELION names the classes by it: a job is the same wherever it is made.
    run = os.path.relpath(out / "run", project)
    words = [PROGRAM, "--i", str(out / "particles.star"), "--o", run]
    ended = subprocess.run(
        [*words, *options, *OPTIONS], cwd=project, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise CryorayError(f"{PROGRAM} ended with {ended.returncode}: {ended.stderr[-500:]}")


def without_poses(out: Path, source: Path, rows: np.ndarray) -> None:
    """Write rows of a STAR file without what a refinement would find out."""
    star = parse(source)
    table = star["particles"]
    columns = [name for name in table.columns if name not in _POSE]
    places = [table.columns.index(name) for name in columns]
    lines = [[fields[at] for at in places] for fields in map(table.fields, rows.tolist())]
    with out.open("wb") as file:
        file.write(VERSION)
        star["optics"].copy(file)
        file.write(b"\n" + VERSION + loop("particles", columns, lines))


def counted(data: Path, project: Path) -> tuple[np.ndarray, np.ndarray]:
    """Good and bad particles of every class of a job, int64 [classes] each.

    Args:
        data: the job's ``run_itNNN_data.star``, beside its model.
        project: the simulated project whose particles they are.
    """
    classes = len(parse(model_of(data))["model_classes"])
    names = parse(project / "particles.star")["particles"].column("rlnImageName").tolist()
    kept = [line["keep"] == "1" for line in read_truth(project)]
    is_good = dict(zip(names, kept, strict=True))
    table = parse(data)["particles"]
    good = np.array([is_good[name] for name in table.column("rlnImageName").tolist()])
    number = table.numbers("rlnClassNumber").astype(np.int64) - 1
    counts = np.bincount(number[good], minlength=classes)
    return counts, np.bincount(number, minlength=classes) - counts
