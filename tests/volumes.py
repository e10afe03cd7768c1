"""A RELION Class3D job on disk: maps that are good, over-fitted and streaky, and an empty class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.formats.volume import write_volume
from tests.examples import particles, write_stack

JOB = "Class3D/job004"
SIDE, PIXEL_SIZE = 36, 5.0
#: Particles of each class by hard assignment; the last is empty.
COUNTS = (12, 6, 4, 0)
GOOD, NOISE, STREAKY = 0, 1, 2

_MODEL = """
# version 30001

data_model_general

_rlnReferenceDimensionality 3
_rlnPixelSize {pixel_size}
_rlnNrClasses 4


# version 30001

data_model_classes

loop_
_rlnReferenceImage #1
_rlnClassDistribution #2
_rlnAccuracyRotations #3
_rlnAccuracyTranslationsAngst #4
_rlnEstimatedResolution #5
_rlnOverallFourierCompleteness #6
{job}/run_it025_class001.mrc 0.52 3.1 2.0 18.0 0.98
{job}/run_it025_class002.mrc 0.30 2.5 1.9 12.0 0.97
{job}/run_it025_class003.mrc 0.18 3.5 2.4 19.0 0.61
{job}/run_it025_class004.mrc 0.00 999.0 999.0 inf 0.00

"""
_OPTIMISER = """
# version 30001

data_optimiser_general

_rlnModelStarFile {job}/run_it025_model.star
_rlnExperimentalDataStarFile {job}/run_it025_data.star
_rlnParticleDiameter 150.0

"""
_DATA = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnImagePixelSize #5
_rlnImageSize #6
1 opticsGroup1 300 2.7 5.0 36


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnClassNumber #3
"""


def protein(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """float32 [side, side, side]: a body of a few overlapping balls, in quiet solvent."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((side,) * 3) - side // 2
    places = rng.normal(0, 0.09 * side, (7, 3))
    body = sum(
        np.exp(-((z - c) ** 2 + (y - b) ** 2 + (x - a) ** 2) / (2 * (0.06 * side) ** 2))
        for a, b, c in places
    )
    return np.asarray(body + rng.normal(0, 0.02, body.shape), np.float32)


def overfitted(side: int = SIDE, seed: int = 1) -> np.ndarray:
    """Noise, as sharp as the box allows, within the sphere."""
    noise = np.random.default_rng(seed).normal(size=(side,) * 3)
    return np.asarray(noise * (_radii(side) < 0.42 * side), np.float32)


def streaky(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """The protein as seen from three sides, all near one another."""
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(protein(side, seed))))
    axes = np.indices((side,) * 3).reshape(3, -1) - side // 2
    views = np.array([[0.0, 0.0, 1.0], [0.5, 0.0, 0.87], [0.25, 0.43, 0.87]])
    seen = (np.abs(views @ axes) < 0.8).any(0).reshape(spectrum.shape)
    seen |= _radii(side) < 2
    volume = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum * seen)).real)
    return np.asarray(volume * (_radii(side) < 0.42 * side), np.float32)


def _radii(side: int) -> np.ndarray:
    z, y, x = np.indices((side,) * 3) - side // 2
    return np.asarray(np.sqrt(z**2 + y**2 + x**2))


def write_volume_job(project: Path) -> Path:
    """The folder of a Class3D job ``Class3D/job004`` in ``project``, after iteration 25."""
    job = project / JOB
    job.mkdir(parents=True)
    (project / "default_pipeline.star").write_text("\ndata_pipeline_general\n")
    for number, volume in enumerate((protein(), overfitted(), streaky(), protein()), 1):
        write_volume(job / f"run_it025_class{number:03d}.mrc", volume, PIXEL_SIZE)
    (job / "run_it025_model.star").write_text(_MODEL.format(job=JOB, pixel_size=PIXEL_SIZE))
    (job / "run_it025_optimiser.star").write_text(_OPTIMISER.format(job=JOB))
    numbers = [number for number, count in enumerate(COUNTS, 1) for _ in range(count)]
    numbers = [*numbers[::2], *numbers[1::2]]
    stack = project / "Extract/job001/mic.mrcs"
    stack.parent.mkdir(parents=True)
    write_stack(stack, particles(len(numbers), seed=6))
    rows = [f"{i:06d}@Extract/job001/mic.mrcs 1 {n}" for i, n in enumerate(numbers, 1)]
    (job / "run_it025_data.star").write_text(_DATA + "\n".join(rows) + "\n\n")
    return job
