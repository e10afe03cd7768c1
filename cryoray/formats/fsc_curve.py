"""Published FSC curves: RELION's ``postprocess.star``, EMDB's ``_fsc.xml``, text of cryoSPARC and others."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml

from cryoray.errors import FormatError
from cryoray.formats.files import is_number
from cryoray.formats.opening import way_out
from cryoray.formats.star import parse as parse_star

READABLE = "RELION's postprocess.star, EMDB's _fsc.xml, or a table as cryoSPARC writes it"

#: RELION's columns, that by which it gives the resolution first.
_RELION = {
    "rlnFourierShellCorrelationCorrected": "corrected",
    "rlnFourierShellCorrelationMaskedMaps": "masked",
    "rlnFourierShellCorrelationUnmaskedMaps": "unmasked",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "phase_randomised",
    "rlnGoldStandardFsc": "gold_standard",
}
#: cryoSPARC's columns, likewise.
_CRYOSPARC = {
    "fsc_noisesub": "corrected",
    "fsc_tightmask": "masked",
    "fsc": "gold_standard",
    "fsc_loosemask": "loose_mask",
    "fsc_sphericalmask": "spherical_mask",
    "fsc_nomask": "unmasked",
}


@dataclass(frozen=True, slots=True, eq=False)
class PublishedCurve:
    """FSC curves of one file.

    Attributes:
        path: the file.
        frequency: float64 [s], 1/Å, rising.
        curves: name to float64 [s]; the one that gives the resolution first.
    """

    path: Path
    frequency: np.ndarray
    curves: Mapping[str, np.ndarray]

    @property
    def main(self) -> np.ndarray:
        """The curve by which the resolution is given."""
        return next(iter(self.curves.values()))


def read_curve(path: Path, extent: float | None = None) -> PublishedCurve:
    """FSC curves from a file.

    Args:
        path: ``.star``, ``.xml``, or a table in text with a header (comma, tab or blank between
            columns). Its abscissa is found by name (``res_A``, ``resolution``, ``wave_number``) or, without
            one, by its values: frequencies are below 1/Å, resolutions above.
        extent: box side in Å, for tables that count shells, as cryoSPARC's do.

    Raises:
        FormatError: it is none of these, or has no points.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError("there is no such curve", file=path, remedy=way_out(path))
    reader = {".star": _from_star, ".xml": _from_xml}.get(path.suffix.lower())
    frequency, curves = reader(path) if reader else _from_text(path, extent)
    order = np.argsort(frequency, kind="stable")
    good = order[np.isfinite(frequency[order])]
    if len(good) < 2 or not curves:
        raise FormatError("has no curve of two points or more", file=path)
    return PublishedCurve(
        path, frequency[good], {name: value[good] for name, value in curves.items()}
    )


def _from_star(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    star = parse_star(path)
    table = star.with_column(*_RELION, prefer=("fsc", "model_class_1"))
    if table is None or "rlnResolution" not in table.columns:
        raise FormatError("has no FSC curve", file=path, remedy=f"give {READABLE}")
    names = [name for name in _RELION if name in table.columns]
    values = table.read(numbers=["rlnResolution", *names]).numbers
    # RELION writes 0.001001 (999 Å) where it means zero.
    frequency = values["rlnResolution"].copy()
    frequency[:1] = np.where(np.isclose(frequency[:1], 1 / 999, rtol=1e-2), 0.0, frequency[:1])
    return frequency, {_RELION[name]: values[name] for name in names}


def _from_xml(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """EMDB's schema: ``<fsc xaxis="Resolution (A-1)"><coordinate><x/><y/></coordinate>…``."""
    try:
        root = parse_xml(path, forbid_dtd=True).getroot()
        points = [
            (float(_text(point, "x")), float(_text(point, "y")))
            for point in root.iter("coordinate")
        ]
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise FormatError(
            f"is not an FSC curve of EMDB: {error}", file=path, remedy=f"give {READABLE}"
        ) from error
    if not points:
        raise FormatError("has no points", file=path, remedy=f"give {READABLE}")
    x, y = np.array(points).T
    return _as_frequency(x), {"published": y}


def _text(point: Element, name: str) -> str:
    return (point.findtext(name) or "").strip()


def _from_text(path: Path, extent: float | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise FormatError(f"is not text: {error}", file=path, remedy=f"give {READABLE}") from error
    try:
        rows = [_fields(line) for line in lines]
    except csv.Error as error:
        raise FormatError(f"is not a table of a curve: {error}", file=path) from error
    if len(rows) < 3 or len(rows[0]) < 2:
        raise FormatError("is not a table of a curve", file=path, remedy=f"give {READABLE}")
    head = [name.strip().lower() for name in rows[0]]
    if head[:1] == ["curve"] and len(head) == 3:  # one curve under the other, named in each row
        return _stacked(path, rows[1:])
    if all(map(is_number, head)):
        head, body = ["x", *(f"curve_{i}" for i in range(1, len(head)))], rows
    else:
        body = rows[1:]
    columns = dict(
        zip(head, _numbers(path, body, len(head), 1 + len(rows) - len(body)).T, strict=True)
    )
    if "wave_number" in columns:
        if extent is None:
            raise FormatError("counts shells, so it needs the side of the box in Å", file=path)
        frequency = columns.pop("wave_number") / extent
    else:
        known = [name for name in ("frequency", "res_a", "resolution", "x") if name in columns]
        frequency = _as_frequency(columns.pop(known[0] if known else head[0]))
    for other in ("freq_cyc_per_vox", "res_a", "resolution"):
        columns.pop(other, None)
    named = {_CRYOSPARC[name]: columns.pop(name) for name in _CRYOSPARC if name in columns}
    return frequency, {**named, **columns}


def _stacked(path: Path, rows: Sequence[Sequence[str]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    names = list(dict.fromkeys(row[0] for row in rows))
    values = _numbers(path, [row[1:] for row in rows], 2, 2)
    of = np.array([row[0] for row in rows])
    frequency = _as_frequency(values[of == names[0], 0])
    curves = {}
    for name in sorted(names, key=lambda name: _order(name.lstrip("_"))):
        mine = values[of == name]
        if len(mine) == len(frequency):
            curves[_RELION.get(name.lstrip("_"), name.lstrip("_"))] = mine[:, 1]
    return frequency, curves


def _order(name: str) -> int:
    return list(_RELION).index(name) if name in _RELION else len(_RELION)


def _fields(line: str) -> list[str]:
    if "," in line:
        return next(csv.reader([line]))
    return re.split(r"\s+", line.strip())


def _numbers(path: Path, rows: Sequence[Sequence[str]], columns: int, first: int) -> np.ndarray:
    values = np.empty((len(rows), columns))
    for i, row in enumerate(rows):
        try:
            values[i] = [float(field) for field in row]
        except ValueError:
            raise FormatError("is not a row of numbers", file=path, row=i + first) from None
    return values


def _as_frequency(x: np.ndarray) -> np.ndarray:
    """1/Å from 1/Å or from Å: no FSC goes beyond 1 Å, and none is given in Å below that."""
    finite = x[np.isfinite(x)]
    if len(finite) and finite.max() > 1.0:
        with np.errstate(divide="ignore"):
            return np.where(np.isinf(x), 0.0, 1 / x)
    return x
