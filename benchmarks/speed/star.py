"""A million particles read and their verdicts written, beside starfile and RELION; a model of 2,000 classes.

The work: read a RELION 3.1 ``particles.star`` of a million rows and 28 columns and write its four
sides (kept, discarded, review, quarantined), each with the optics table. starfile reads it to pandas
and writes the four. relion_star_handler has no such split, so it reads the file, splits it at random
in four and writes them (``--split``), which is the nearest that it does.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import starfile

from benchmarks.common import Cost, Row, command, in_process, main, result, typical
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.formats.verdicts import write_verdicts
from cryoray.records import Verdicts

ROWS, PER_MICROGRAPH, REPEATS = 1_000_000, 250, 3
CLASSES, SHELLS = 2_000, 129
#: Parts of the rows with each verdict; the rest are quarantined.
_PARTS = {"keep": 0.6, "discard": 0.3, "review": 0.09}

_HEAD = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnImagePixelSize #7
_rlnImageSize #8
_rlnImageDimensionality #9
opticsGroup1 1 0.885000 300.000000 1.400000 0.100000 3.540000 64 2


# version 30001

data_particles

loop_
"""
_COLUMNS = [
    "CoordinateX",
    "CoordinateY",
    "AutopickFigureOfMerit",
    "ClassNumber",
    "AnglePsi",
    "ImageName",
    "MicrographName",
    "OpticsGroup",
    "CtfMaxResolution",
    "CtfFigureOfMerit",
    "DefocusU",
    "DefocusV",
    "DefocusAngle",
    "CtfBfactor",
    "CtfScalefactor",
    "PhaseShift",
    "AngleRot",
    "AngleTilt",
    "OriginXAngst",
    "OriginYAngst",
    "GroupNumber",
    "NormCorrection",
    "LogLikeliContribution",
    "MaxValueProbDistribution",
    "NrOfSignificantSamples",
    "GroupName",
    "RandomSubset",
    "HelicalTubeID",
]


def write_particles(path: Path, rows: int = ROWS) -> Path:
    """A RELION 3.1 particles.star as Class2D writes it, with made-up numbers."""
    draw = np.random.default_rng(1)
    before = [
        f"{x:12.6f} {y:12.6f} {fom:12.6f} {group:12d} {psi:12.6f} "
        for x, y, fom, group, psi in zip(
            draw.uniform(0, 4096, 9973),
            draw.uniform(0, 4096, 9973),
            draw.uniform(-1, 5, 9973),
            draw.integers(1, 100, 9973),
            draw.uniform(-180, 180, 9973),
            strict=True,
        )
    ]
    numbers = draw.normal(100, 4000, (10007, 14))
    after = [
        " ".join(f"{number:12.6f}" for number in line)
        + f" {line[3] ** 2:12.6e} {line[4] / 4e4:12.6f}"
        for line in numbers.tolist()
    ]
    with path.open("w") as file:
        file.write(_HEAD + "".join(f"_rln{name} #{n}\n" for n, name in enumerate(_COLUMNS, 1)))
        for row in range(rows):
            name = f"20170629_{row // PER_MICROGRAPH:05d}_frameImage"
            file.write(
                f"{before[row % 9973]}{row % PER_MICROGRAPH + 1:06d}@Extract/job007/Movies/{name}.mrcs"
                f" MotionCorr/job002/Movies/{name}.mrc            1 {after[row % 10007]}"
                f" {row % 97:12d} group_{row // 5000:03d} {row % 2 + 1:12d} {0:12d} \n"
            )
        file.write(" \n")
    return path


def fates(rows: int) -> np.ndarray:
    """A made-up verdict for each row."""
    names = np.array([*_PARTS, "quarantined"], object)
    share = [*_PARTS.values(), 1 - sum(_PARTS.values())]
    return names[np.random.default_rng(2).choice(len(names), rows, p=share)]


def by_cryoray(path: Path, out: Path) -> None:
    source = open_source(path)
    fate = fates(len(source))
    rows = np.flatnonzero(fate != "quarantined")
    score = np.random.default_rng(3).random(len(rows), np.float32)
    columns = {
        "score": score,
        "verdict": fate[rows],
        "d1": score,
        "d2": score,
        "d3": score * np.nan,
    }
    lost = np.flatnonzero(fate == "quarantined")
    quarantined = [(row, "all pixels are 0") for row in lost.tolist()]
    write_verdicts(out, source, Verdicts.of(rows, columns, quarantined))


def read_by_cryoray(path: Path) -> None:
    open_source(path)


def by_starfile(path: Path, out: Path) -> None:
    tables = starfile.read(path)
    fate = fates(len(tables["particles"]))
    out.mkdir()
    for name in (*_PARTS, "quarantined"):
        side = {"optics": tables["optics"], "particles": tables["particles"][fate == name]}
        starfile.write(side, out / f"{name}.star")


def read_by_starfile(path: Path) -> None:
    starfile.read(path)


def by_relion(path: Path, out: Path) -> Cost:
    out.mkdir()
    files = ("--i", path, "--o", out / "part.star")
    how = ("--split", "--nr_split", "4", "--random_order")
    return command("relion_star_handler", *files, *how, cwd=out)


def write_model(path: Path, classes: int = CLASSES) -> Path:
    """A model.star with a table of shells for each class, as RELION writes them."""
    shells = "".join(
        f"{i:12d} {i / 300:12.6f} {300 / (i or 0.3):12.6f} {np.exp(-i / 9):12.6e} {i / 99:12.6f} \n"
        for i in range(SHELLS)
    )
    names = ["SpectralIndex", "Resolution", "AngstromResolution", "SsnrMap", "ReferenceSigma2"]
    labels = "".join(f"_rln{name} #{n}\n" for n, name in enumerate(names, 1))
    with path.open("w") as file:
        file.write(
            "\n# version 30001\n\ndata_model_general\n\n_rlnReferenceDimensionality 2\n_rlnPixelSize 3.54\n"
            f"_rlnNrClasses {classes}\n\n\n# version 30001\n\ndata_model_classes\n\nloop_\n"
            "_rlnReferenceImage #1\n_rlnClassDistribution #2\n_rlnEstimatedResolution #3\n"
        )
        file.writelines(
            f"{i:06d}@Class2D/job010/run_it025_classes.mrcs {1 / classes:12.6f} {9.9:12.6f} \n"
            for i in range(1, classes + 1)
        )
        for i in range(1, classes + 1):
            file.write(f"\n\n# version 30001\n\ndata_model_class_{i}\n\nloop_\n{labels}{shells}")
        file.write(" \n")
    return path


def classes_by_cryoray(path: Path) -> int:
    return len(open_source(path, "class2d"))


def classes_by_starfile(path: Path) -> int:
    return len(starfile.read(path, read_n_blocks=2)["model_classes"])


def tables_by_starfile(path: Path) -> int:
    return len(starfile.read(path))


def tables_by_cryoray(path: Path) -> int:
    return len(parse(path))


def measure(rows: int = ROWS, repeats: int = REPEATS) -> dict[str, Any]:
    """Costs of cryoray, starfile and relion_star_handler, side by side, the median of some repeats."""
    known = shutil.which("relion_star_handler") is not None
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        path, out = write_particles(folder / "particles.star", rows), folder / "out"
        model = write_model(folder / "run_it025_model.star")
        works: list[tuple[str, str, Callable[[], Cost]]] = [
            ("read, write four sides", "starfile", lambda: in_process(by_starfile, path, out)[0]),
            ("read, write four sides", "cryoray", lambda: in_process(by_cryoray, path, out)[0]),
            *[("read, write four sides", "relion_star_handler", lambda: by_relion(path, out))][
                :known
            ],
            ("read", "starfile", lambda: in_process(read_by_starfile, path)[0]),
            ("read", "cryoray", lambda: in_process(read_by_cryoray, path)[0]),
            ("classes of a model", "starfile", lambda: in_process(classes_by_starfile, model)[0]),
            ("classes of a model", "cryoray", lambda: in_process(classes_by_cryoray, model)[0]),
            ("find all its tables", "starfile", lambda: in_process(tables_by_starfile, model)[0]),
            ("find all its tables", "cryoray", lambda: in_process(tables_by_cryoray, model)[0]),
        ]
        costs: list[list[Cost]] = [[] for _ in works]
        for _ in range(repeats):
            for each, (_, _, work) in zip(costs, works, strict=True):
                each.append(work())
                shutil.rmtree(out, ignore_errors=True)
        size = path.stat().st_size / 2**20
    lines: list[Row] = []
    for (what, program, _), each in zip(works, costs, strict=True):
        cost = typical(each)
        line: Row = {"what": what, "by": program, "seconds": round(cost.seconds, 3)}
        lines.append(line | {"CPU s": round(cost.cpu_seconds, 3), "MiB": round(cost.mib, 1)})
    return result(
        f"A particles.star of {rows:,} rows and {len(_COLUMNS)} columns ({size:,.0f} MiB),"
        f" and a model.star of {CLASSES:,} classes",
        lines,
        ratios=("seconds", "CPU s", "MiB"),
        among="what",
        notes=[
            f"the median of {repeats} runs, taken in turn; MiB is the peak beyond what imports take",
            "starfile reads the first two tables of the model for its classes",
            *([] if known else ["relion_star_handler is not installed here"]),
        ],
    )


if __name__ == "__main__":
    main(measure)
