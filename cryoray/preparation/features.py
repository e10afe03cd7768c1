"""What a source says about an image besides its pixels: which columns, in what unit, transformed how.

What a particle's features are depends on the source alone, never on which rows of it are asked for:
a request of one row and a bulk run over a million must come to the same verdict. A class is also
compared with the others of its job. What a source lacks, or says with a value that means "unknown"
(999, -999, infinity), is missing (NaN), not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np

from cryoray.errors import SettingsError
from cryoray.formats import rln
from cryoray.formats.relion import known
from cryoray.formats.source import Source
from cryoray.preparation.class_features import (
    COUNTED,
    MEASURED,
    WINDOW,
    class_columns,
    jobs,
    rank,
    robust_z,
)
from cryoray.preparation.class_relations import RELATED
from cryoray.preparation.surroundings import EDGE_DISTANCE, NEIGHBOUR_DISTANCE, surroundings
from cryoray.records import KINDS, Kind

_TRANSFORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "log": lambda x: np.log(np.where(x > 0, x, np.nan)),
    "log1p": lambda x: np.log1p(np.where(x >= 0, x, np.nan)),
    "asinh": np.arcsinh,
}
_INVERSES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "log": np.exp,
    "log1p": np.expm1,
    "asinh": np.sinh,
}


def _only(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True, slots=True)
class Feature:
    """One number about an image.

    Attributes:
        name: the column in `particles.parquet`.
        columns: the RELION or cryoSPARC columns that it is made of, or what cryoray makes itself.
        unit: before the transform.
        transform: ``log``, ``log1p``, ``asinh`` or nothing.
        documentation: what it tells.
        source: where the program that writes it documents it.
        combine: makes one number of several columns.
        kinds: the sources that have it.
        within: how it is compared with the other classes of the job: by ``rank``, by robust ``z``
            score, or not at all.
    """

    name: str
    columns: tuple[str, ...]
    unit: str
    transform: str
    documentation: str
    source: str = ""
    combine: Callable[..., np.ndarray] = _only
    kinds: tuple[Kind, ...] = ("particle",)
    within: Literal["", "rank", "z"] = ""

    def values(self, columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        """float64 [n], transformed, NaN where missing; not yet compared with others."""
        if any(name not in columns for name in self.columns):
            return np.full(n, np.nan)
        raw = [known(columns[name]) for name in self.columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = self.combine(*raw)
            value = _TRANSFORMS[self.transform](value)
        return np.where(np.isfinite(value), value, np.nan)

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """float64, transformed values of this feature given back in its ``unit``; NaN stays NaN."""
        return _INVERSES[self.transform](np.asarray(values, np.float64))


#: What the preparation itself knows, beside the source's own columns.
PREPARED_PIXEL_SIZE, DIAMETER = "preparedPixelSize", "particleDiameter"

_LABELS = "RELION metadata_label.h"
_RANKER = "RELION class_ranker.cpp"
_PICKS = "cryoSPARC guide, Particle Picking Calibration"
#: Not documented; in .cs files error = image_pow - cross_cor + slice_pow and alpha_min = cross_cor /
#: (2 slice_pow), so that cross_cor is twice the product of particle and class.
_FILES = "cryoSPARC .cs files, from how their columns add up"
_ERROR, _IMAGE_POWER, _CROSS, _CLASS_POWER = (
    f"alignments2D/{name}" for name in ("error", "image_pow", "cross_cor", "slice_pow")
)

_PARTICLES: tuple[Feature, ...] = (
    Feature(
        "ctf_max_resolution", (rln.CTF_MAX_RESOLUTION,), "Å", "log",
        "to which the CTF could be fitted in the micrograph", _LABELS,
    ),
    Feature(
        "ctf_figure_of_merit", (rln.CTF_FIGURE_OF_MERIT,), "", "",
        "correlation of the CTF with the micrograph's power spectrum", _LABELS,
    ),
    Feature(
        "autopick_figure_of_merit", (rln.AUTOPICK_FIGURE_OF_MERIT,), "", "",
        "how sure the picker was", _LABELS,
    ),
    Feature(
        "norm_correction", ("rlnNormCorrection",), "", "log",
        "grey scale against the other particles, from 2D or 3D classification", _LABELS,
    ),
    Feature(
        "log_likelihood", ("rlnLogLikeliContribution",), "", "asinh",
        "contribution to the log-likelihood", _LABELS,
    ),
    Feature(
        "max_value_probability", ("rlnMaxValueProbDistribution",), "", "",
        "probability of the most probable orientation and class", _LABELS,
    ),
    Feature(
        "significant_samples", ("rlnNrOfSignificantSamples",), "", "log1p",
        "number of orientations that could not be ruled out", _LABELS,
    ),
    Feature(
        "defocus", (rln.DEFOCUS_U, rln.DEFOCUS_V), "µm", "",
        "mean of the two axes", _LABELS, lambda u, v: (u + v) / 2e4,
    ),
    Feature(
        "astigmatism", (rln.DEFOCUS_U, rln.DEFOCUS_V), "Å", "log1p",
        "difference of the two axes of defocus", _LABELS, lambda u, v: np.abs(u - v),
    ),
    Feature("phase_shift", (rln.PHASE_SHIFT,), "°", "", "of a phase plate", _LABELS),
    Feature(
        "prepared_pixel_size", (PREPARED_PIXEL_SIZE,), "Å/px", "log",
        "of the network's input", "cryoray", kinds=KINDS,
    ),
    Feature(
        "particle_diameter", (DIAMETER,), "Å", "log", "as given to the preparation", "cryoray",
        kinds=KINDS,
    ),
    Feature(
        "neighbour_distance", (NEIGHBOUR_DISTANCE,), "box", "log1p",
        "to the nearest particle of the micrograph, from rlnCoordinateX and Y or location/center_…",
        "cryoray",
    ),
    Feature(
        "edge_distance", (EDGE_DISTANCE,), "box", "asinh",
        "to the nearest edge of the micrograph, whose size location/micrograph_shape says, or its "
        "file", "cryoray",
    ),
    Feature(
        "pick_ncc", ("pick_stats/ncc_score",), "", "",
        "normalised correlation of the pick with its template", _PICKS,
    ),
    Feature(
        "pick_power", ("pick_stats/power",), "", "asinh",
        "power of the micrograph at the pick", _PICKS,
    ),
    Feature(
        "class_posterior", ("alignments2D/class_posterior",), "", "",
        "probability of the class it was put in", "cryoSPARC guide, Class Probability Filter",
    ),
    Feature(
        "effective_classes", ("alignments2D/class_ess",), "", "log",
        "number of classes that it is spread over", _FILES,
    ),
    Feature(
        "image_power", (_IMAGE_POWER,), "", "log", "of the particle, at alignment", _FILES,
    ),
    Feature(
        "alignment_error", (_ERROR, _IMAGE_POWER), "", "",
        "part of the particle's power that its class does not explain",
        "cryoSPARC forum, topic 12161", np.divide,
    ),
    Feature(
        "residual_power", ("alignments2D/resid_pow", _IMAGE_POWER), "", "",
        "power left after subtraction of the class, against the particle's", _FILES,
        lambda residual, image: np.where(residual > 0, residual / image, np.nan),
    ),
    Feature(
        "class_correlation", (_CROSS, _IMAGE_POWER, _CLASS_POWER), "", "",
        "normalised correlation of the particle with its class",
        _FILES, lambda c, i, s: c / (2 * np.sqrt(i * s)),
    ),
    Feature(
        "class_scale", (_CROSS, _CLASS_POWER), "", "asinh",
        "contrast of the particle in units of its class's", _FILES,
        lambda c, s: c / (2 * s),
    ),
)  # fmt: skip


def _of_class(
    name: str, column: str, unit: str, transform: str, documentation: str, source: str
) -> Feature:
    return Feature(name, (column,), unit, transform, documentation, source, kinds=("class2d",))


def _moments(area: str, where: str, names: Sequence[str]) -> tuple[Feature, ...]:
    described = {
        "Sum": "sum of greys over the circle's area",
        "Mean": "mean grey",
        "Stddev": "standard deviation of greys",
        "Skew": "skewness of greys",
        "Kurt": "kurtosis of greys",
    }
    return tuple(
        _of_class(
            f"{area}_{name.lower()}", f"{area}{name}", "" if name in ("Skew", "Kurt") else "grey",
            "log" if name == "Kurt" else "asinh", f"{described[name]} {where}",
            f"{_RANKER}: rln{area.capitalize()}{name}",
        )
        for name in names
    )  # fmt: skip


#: Of classes. ``grey`` is the median over the job's classes of the standard deviation within the
#: circle, and zero an image's level outside it.
_CLASSES: tuple[Feature, ...] = (
    Feature(
        "class_distribution", (rln.CLASS_DISTRIBUTION,), "", "log",
        "fraction of the particles in this class", _LABELS, lambda x: np.maximum(x, 1e-5),
        ("class2d",),
    ),
    _of_class(
        "estimated_resolution", rln.ESTIMATED_RESOLUTION, "Å", "log", "of the class average",
        _LABELS,
    ),
    _of_class(
        "accuracy_rotations", rln.ACCURACY_ROTATIONS, "°", "log",
        "to which particles could be turned to the class", _LABELS,
    ),
    _of_class(
        "accuracy_translations", rln.ACCURACY_TRANSLATIONS_ANGST, "Å", "log",
        "to which particles could be moved to the class; from px in files of RELION 3.0", _LABELS,
    ),
    _of_class(
        "particle_number", "particleNr", "", "log1p",
        "particles whose best class this is, in the job's data.star", f"{_LABELS}: rlnClassNumber",
    ),
    _of_class(
        "weighted_resolution", "weightedResolution", "1/Å²", "log",
        "1 / (resolution² ln particles)", f"{_RANKER}: rlnWeightedResolution",
    ),
    _of_class(
        "relative_resolution", "relativeResolution", "box", "log",
        "resolution against the box", f"{_RANKER}: rlnRelativeResolution",
    ),
    *_moments("ring", "in the outer 5% of the circle's radius", ("Mean", "Stddev", "Skew", "Kurt")),
    *_moments("protein", "where protein is", ("Sum", "Mean", "Stddev", "Skew", "Kurt")),
    *_moments("solvent", "in the rest of the circle", ("Sum", "Mean", "Stddev", "Skew", "Kurt")),
    _of_class(
        "protein_area", "proteinArea", "circle", "",
        "fraction of the circle that is protein; the rest is solvent",
        f"{_RANKER}: rlnProteinArea, rlnSolventArea",
    ),
    _of_class(
        "protein_outline", "proteinCAR", "", "log",
        "outline of the protein against that of a disc of its area",
        f"{_RANKER}: rlnProteinCAR",
    ),
    _of_class(
        "scattered_signal", "scatteredSignal", "", "",
        "fraction of the bright area that is in small islands", f"{_RANKER}: rlnScatteredSignal",
    ),
    _of_class(
        "edge_signal", "edgeSignal", "", "", "fraction of the circle's edge that is protein",
        f"{_RANKER}: rlnEdgeSignal",
    ),
    _of_class(
        "relative_signal", "relativeSignalIntensity", "grey", "asinh",
        "protein's greys above the solvent's mean, summed over the circle's area",
        f"{_RANKER}: rlnRelativeSignalIntensity",
    ),
    *(
        _of_class(
            f"lowpass_{name.lower()}", f"lowpassFilteredImage{name}", "grey", "asinh",
            f"{described} of the image filtered to 25 Å",
            f"{_RANKER}: rlnLowpassFilteredImage{name}",
        )
        for name, described in (
            ("Mean", "mean"), ("Stddev", "standard deviation"), ("Min", "lowest grey"),
            ("Max", "highest grey"),
        )
    ),
    _of_class(
        "relation", "relation", "", "",
        "mean of its three best correlations with other classes of the job, turned, mirrored and moved",
        "cryoray",
    ),
    _of_class(
        "central_structure", "centralStructure", "", "",
        "log of the power of fine structure in the middle of the circle over that near its edge",
        "cryoray",
    ),
    _of_class(
        "fine_structure", "fineStructure", "", "",
        "log of the power of fine structure in the middle of the circle", "cryoray",
    ),
    _of_class(
        "extent", "extent", "circle", "",
        "radius within which 0.95 of the positive power lies", "cryoray",
    ),
    *(
        _of_class(
            f"{part}_entropy", f"{part}Entropy", "bit", "", f"of the histogram of greys {where}",
            f"{_RANKER}: rln{part.capitalize()}Entropy",
        )
        for part, where in (
            ("total", "in the whole image"), ("protein", "where protein is"),
            ("solvent", "in the rest of the circle"),
        )
    ),
)  # fmt: skip


def _within_job(feature: Feature) -> tuple[Feature, Feature]:
    """The feature's rank among the classes of the job, and its robust z-score."""
    return (
        replace(
            feature, name=f"{feature.name}_rank", within="rank",
            documentation=f"rank of {feature.name} within the job, 0 to 1",
        ),
        replace(
            feature, name=f"{feature.name}_z", within="z",
            documentation=f"robust z-score of {feature.name} within the job, asinh of it",
        ),
    )  # fmt: skip


FEATURES: tuple[Feature, ...] = (
    *_PARTICLES,
    *_CLASSES,
    *(compared for feature in _CLASSES for compared in _within_job(feature)),
)


def feature_names(kind: Kind) -> tuple[str, ...]:
    """The features that images of ``kind`` can have, in the order of columns."""
    return tuple(feature.name for feature in FEATURES if kind in feature.kinds)


def chosen_features(kind: Kind, names: Sequence[str] | None) -> tuple[Feature, ...]:
    """The features named, in the order named; all that ``kind`` has where ``names`` is None.

    Raises:
        SettingsError: there is no such feature.
    """
    there = {feature.name: feature for feature in FEATURES if kind in feature.kinds}
    if names is None:
        return tuple(there.values())
    for name in names:
        if name not in there:
            raise SettingsError(
                f"there is no feature {name!r} of kind {kind}",
                remedy=f"take some of {', '.join(there)}, or none",
            )
    return tuple(there[name] for name in names)


def source_features(
    source: Source,
    names: Sequence[str] | None,
    *,
    rows: np.ndarray | None = None,
    prepared_pixel_size: np.ndarray | None = None,
    diameter: float | None = None,
    invert: bool = False,
) -> np.ndarray:
    """float32 [n, F] of a source's rows: transformed, not standardised, NaN where missing.

    What takes all rows of the source to find out (neighbours, images and ranks of classes) is found
    out once and kept with the source.

    Args:
        source: where the rows are.
        names: of the features; None for all that the source's kind has.
        rows: int64 [n], 0-based; None for all.
        prepared_pixel_size: [n], Å/px of the network's input, NaN where unknown.
        diameter: Å.
        invert: whether protein is dark in the images of classes.

    Raises:
        SettingsError: there is no such feature.
    """
    features = chosen_features(source.kind, names)
    some = slice(None) if rows is None else rows
    n = len(source) if rows is None else len(rows)
    needed = {column for feature in features for column in feature.columns}
    everyone = {**source.metadata, **_made(source, needed, diameter, invert)}
    columns = {name: everyone[name][some] for name in needed & everyone.keys()}
    if prepared_pixel_size is not None:
        columns[PREPARED_PIXEL_SIZE] = prepared_pixel_size
    if diameter is not None:
        columns[DIAMETER] = np.full(n, diameter)
    table = np.empty((n, len(features)), np.float32)
    for at, feature in enumerate(features):
        if feature.within:
            values = feature.values(everyone, len(source))
            table[:, at] = _COMPARED[feature.within](values, jobs(source))[some]
        else:
            table[:, at] = feature.values(columns, n)
    return table


_COMPARED: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "rank": rank,
    # A long tail would leave the others no room once the network standardises.
    "z": lambda values, job: np.arcsinh(robust_z(values, job)),
}

#: What was made of sources that are still in use.
_KEPT: WeakKeyDictionary[Source, dict[Hashable, Mapping[str, np.ndarray]]] = WeakKeyDictionary()


def job_windows(source: Source, diameter: float | None, invert: bool) -> np.ndarray:
    """Side, px, of each class's window as its whole job decides it, float64 [n]; NaN where it has none."""
    return _made(source, {WINDOW}, diameter, invert)[WINDOW]


def described(source: Source) -> Mapping[str, np.ndarray]:
    """The columns of a source, and of particles those that it takes all of its rows to make.

    With these as its metadata, a part of the source has the same features as it has in the whole.
    """
    return {**source.metadata, **_made(source, {NEIGHBOUR_DISTANCE}, None, False)}


def _made(
    source: Source, needed: Set[str], diameter: float | None, invert: bool
) -> Mapping[str, np.ndarray]:
    """Those columns of all rows that cryoray makes itself, as far as they are needed."""
    kept = _KEPT.setdefault(source, {})
    if source.kind == "particle":
        if NEIGHBOUR_DISTANCE in source.metadata or needed.isdisjoint(
            (NEIGHBOUR_DISTANCE, EDGE_DISTANCE)
        ):
            return {}
        return kept.get(None) or kept.setdefault(None, surroundings(source))
    found = _accuracy(source)
    if needed.isdisjoint((*MEASURED, *RELATED, *COUNTED, WINDOW)):
        return found
    # A stack that was not there, or changed since, is looked at again.
    key = (diameter, invert, *(_state(stack) for stack in source.stacks))
    columns = kept.get(key)
    if columns is None:
        columns = class_columns(source, diameter, invert=invert)
        kept.clear()
        kept[key] = columns
    return {**found, **columns}


def _accuracy(source: Source) -> dict[str, np.ndarray]:
    """Accuracy of translations in Å where the source has it in pixels, as RELION 3.0 wrote it."""
    columns = source.metadata
    if rln.ACCURACY_TRANSLATIONS not in columns or rln.ACCURACY_TRANSLATIONS_ANGST in columns:
        return {}
    pixels = known(columns[rln.ACCURACY_TRANSLATIONS])
    return {rln.ACCURACY_TRANSLATIONS_ANGST: pixels * source.pixel_size}


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
