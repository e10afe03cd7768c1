"""A RELION Class2D job on disk: classes that differ in size, one of them empty, and their particles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.examples import particles, write_stack

JOB = "Class2D/job002"
#: Particles of each class by hard assignment; class 3 is empty, the last rows belong to none.
COUNTS = (7, 4, 0, 9, 2)
UNASSIGNED = 1

_OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
opticsGroup1 1 300.000000 2.700000 0.100000 2.500000 40 2


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
_rlnDefocusV #5
_rlnCtfMaxResolution #6
_rlnClassNumber #7
"""
_MODEL = """
# version 30001

data_model_general

_rlnReferenceDimensionality 2
_rlnPixelSize 2.500000
_rlnNrClasses {classes}


# version 30001

data_model_classes

loop_
_rlnReferenceImage #1
_rlnClassDistribution #2
_rlnAccuracyRotations #3
_rlnAccuracyTranslationsAngst #4
_rlnEstimatedResolution #5
{rows}


# version 30001

data_model_class_1

loop_
_rlnSpectralIndex #1
_rlnResolution #2
0 0.000000
"""
_OPTIMISER = """# RELION optimiser; version 4.0.1
# --o {job}/run

# version 30001

data_optimiser_general

_rlnOutputRootName                    {job}/run
_rlnModelStarFile                     {job}/run_it025_model.star
_rlnExperimentalDataStarFile          {job}/run_it025_data.star
_rlnTomoTomogramsFile                 ""
_rlnDoCorrectCtf                                                 1

"""


def write_class_job(project: Path, counts: tuple[int, ...] = COUNTS) -> Path:
    """The folder of a Class2D job ``Class2D/job002`` in ``project``, after iteration 25."""
    job = project / JOB
    job.mkdir(parents=True)
    images = particles(len(counts), seed=5)
    images[np.array(counts) == 0] = 0
    write_stack(job / "run_it025_classes.mrcs", images)
    numbers = [number for number, count in enumerate(counts, 1) for _ in range(count)]
    numbers = [*numbers[::2], *numbers[1::2], *[0] * UNASSIGNED]
    stack = project / "Extract/job001/mic.mrcs"
    stack.parent.mkdir(parents=True)
    write_stack(stack, particles(len(numbers), seed=6))
    total = sum(counts)
    classes = [
        f"{i:06d}@{JOB}/run_it025_classes.mrcs {count / total:12.6f}   "
        + ("999.000000   999.000000          inf " if not count else f"4.5 3.25 {12 + i}.5 ")
        for i, count in enumerate(counts, 1)
    ]
    (job / "run_it025_model.star").write_text(
        _MODEL.format(classes=len(counts), rows="\n".join(classes))
    )
    rows = [
        f"{i:06d}@Extract/job001/mic.mrcs  mic.mrc   1 {9000 + 50 * i}.125 {8800 + 50 * i} 4.5 {n:6d} "
        for i, n in enumerate(numbers, 1)
    ]
    (job / "run_it025_data.star").write_text(_OPTICS + "\n".join(rows) + "\n\n")
    (job / "run_it025_optimiser.star").write_text(_OPTIMISER.format(job=JOB))
    return job
