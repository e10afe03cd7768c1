"""What a source says about an image besides its pixels: which columns, in what unit, transformed how.

A feature of an image never depends on other images: a request of one row and a bulk run over a
million must come to the same verdict. What a source lacks, or says with a value that means
"unknown" (999, -999, infinity), is missing (NaN), not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cryoray.errors import SettingsError
from cryoray.formats.source import Source
from cryoray.records import KINDS, Kind

#: RELION's ways to say that a number is not known.
_UNKNOWN = (999.0, -999.0)

_TRANSFORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "log": lambda x: np.log(np.where(x > 0, x, np.nan)),
    "log1p": lambda x: np.log1p(np.where(x >= 0, x, np.nan)),
    "asinh": np.arcsinh,
}


def _only(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True, slots=True)
class Feature:
    """One number about an image.

    Attributes:
        name: the column in `particles.parquet`.
        columns: the RELION columns that it is made of, or what the preparation itself knows.
        unit: before the transform.
        transform: ``log``, ``log1p``, ``asinh`` or nothing.
        documentation: what it tells.
        combine: makes one number of several columns.
        kinds: the sources that have it.
    """

    name: str
    columns: tuple[str, ...]
    unit: str
    transform: str
    documentation: str
    combine: Callable[..., np.ndarray] = _only
    kinds: tuple[Kind, ...] = ("particle",)

    def values(self, columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        """float32 [n], transformed, NaN where missing."""
        if any(name not in columns for name in self.columns):
            return np.full(n, np.nan, np.float32)
        raw = [np.asarray(columns[name], np.float64) for name in self.columns]
        value = self.combine(*(np.where(np.isin(x, _UNKNOWN), np.nan, x) for x in raw))
        value = _TRANSFORMS[self.transform](value)
        return np.where(np.isfinite(value), value, np.nan).astype(np.float32)


#: What the preparation itself knows, beside the source's own columns.
PREPARED_PIXEL_SIZE, DIAMETER = "preparedPixelSize", "particleDiameter"

FEATURES: tuple[Feature, ...] = (
    Feature(
        "ctf_max_resolution", ("rlnCtfMaxResolution",), "Å", "log",
        "to which the CTF could be fitted in the micrograph",
    ),
    Feature(
        "ctf_figure_of_merit", ("rlnCtfFigureOfMerit",), "", "",
        "correlation of the CTF with the micrograph's power spectrum",
    ),
    Feature(
        "autopick_figure_of_merit", ("rlnAutopickFigureOfMerit",), "", "",
        "how sure the picker was",
    ),
    Feature(
        "norm_correction", ("rlnNormCorrection",), "", "log",
        "grey scale against the other particles, from 2D or 3D classification",
    ),
    Feature(
        "log_likelihood", ("rlnLogLikeliContribution",), "", "asinh",
        "contribution to the log-likelihood",
    ),
    Feature(
        "max_value_probability", ("rlnMaxValueProbDistribution",), "", "",
        "probability of the most probable orientation and class",
    ),
    Feature(
        "significant_samples", ("rlnNrOfSignificantSamples",), "", "log1p",
        "number of orientations that could not be ruled out",
    ),
    Feature(
        "defocus", ("rlnDefocusU", "rlnDefocusV"), "µm", "",
        "mean of the two axes", lambda u, v: (u + v) / 2e4,
    ),
    Feature(
        "astigmatism", ("rlnDefocusU", "rlnDefocusV"), "Å", "log1p",
        "difference of the two axes of defocus", lambda u, v: np.abs(u - v),
    ),
    Feature("phase_shift", ("rlnPhaseShift",), "°", "", "of a phase plate"),
    Feature(
        "prepared_pixel_size", (PREPARED_PIXEL_SIZE,), "Å/px", "log",
        "of the network's input", kinds=KINDS,
    ),
    Feature(
        "particle_diameter", (DIAMETER,), "Å", "log", "as given to the preparation", kinds=KINDS
    ),
    Feature(
        "class_distribution", ("rlnClassDistribution",), "", "log",
        "fraction of the particles in this class", lambda x: np.maximum(x, 1e-5), ("class2d",),
    ),
    Feature(
        "estimated_resolution", ("rlnEstimatedResolution",), "Å", "log",
        "of the class average", kinds=("class2d",),
    ),
    Feature(
        "accuracy_rotations", ("rlnAccuracyRotations",), "°", "log",
        "to which particles could be turned to the class", kinds=("class2d",),
    ),
    Feature(
        "accuracy_translations", ("rlnAccuracyTranslationsAngst",), "Å", "log",
        "to which particles could be moved to the class", kinds=("class2d",),
    ),
)  # fmt: skip


def feature_names(kind: Kind) -> tuple[str, ...]:
    """The features that images of ``kind`` can have, in the order of columns."""
    return tuple(feature.name for feature in FEATURES if kind in feature.kinds)


def chosen_features(kind: Kind, names: Sequence[str] | None) -> tuple[Feature, ...]:
    """The features named, in the order named; all that ``kind`` has where ``names`` is None.

    Raises:
        SettingsError: there is no such feature.
    """
    known = {feature.name: feature for feature in FEATURES if kind in feature.kinds}
    if names is None:
        return tuple(known.values())
    for name in names:
        if name not in known:
            raise SettingsError(
                f"there is no feature {name!r} of kind {kind}",
                remedy=f"take some of {', '.join(known)}, or none",
            )
    return tuple(known[name] for name in names)


def source_features(
    source: Source,
    names: Sequence[str] | None,
    *,
    rows: np.ndarray | None = None,
    prepared_pixel_size: np.ndarray | None = None,
    diameter: float | None = None,
) -> np.ndarray:
    """float32 [n, F] of a source's rows: transformed, not standardised, NaN where missing.

    Args:
        source: where the rows are.
        names: of the features; None for all that the source's kind has.
        rows: int64 [n], 0-based; None for all.
        prepared_pixel_size: [n], Å/px of the network's input, NaN where unknown.
        diameter: Å.

    Raises:
        SettingsError: there is no such feature.
    """
    n = len(source) if rows is None else len(rows)
    columns = {k: v if rows is None else v[rows] for k, v in source.metadata.items()}
    if prepared_pixel_size is not None:
        columns[PREPARED_PIXEL_SIZE] = prepared_pixel_size
    if diameter is not None:
        columns[DIAMETER] = np.full(n, diameter)
    features = chosen_features(source.kind, names)
    if not features:
        return np.empty((n, 0), np.float32)
    return np.stack([feature.values(columns, n) for feature in features], axis=1)
