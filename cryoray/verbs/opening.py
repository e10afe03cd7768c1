"""Which sources a path holds, of which kind, and what the folders of their verdicts are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryoray.errors import InputError
from cryoray.formats.source import Source, find_sources, open_source
from cryoray.models.ensemble import Ensemble
from cryoray.records import KINDS, Kind


def open_sources(path: Path, kind: Kind | None, ensemble: Ensemble) -> list[Source]:
    """The sources under a path, of the kind that the ensemble judges.

    Raises:
        InputError: there are none of any kind.
        EnsembleError: there are some, of another kind.
    """
    ensemble.check_kind(kind or ensemble.kind, path)
    try:
        return [open_source(found, ensemble.kind) for found in find_sources(path, ensemble.kind)]
    except InputError:
        for other in KINDS:
            if other != ensemble.kind and _is_of(path, other):
                ensemble.check_kind(other, path)
        raise


def open_any_kind(path: Path) -> tuple[Kind, list[Source]]:
    """What is judged where neither ensemble nor kind is named: particles, where there are any.

    Raises:
        InputError: there are no sources of any kind; it says why there are none of particles.
    """
    complaints = []
    for kind in KINDS:
        try:
            return kind, [open_source(found, kind) for found in find_sources(path, kind)]
        except InputError as error:
            complaints.append(error)
    raise complaints[0]


def _is_of(path: Path, kind: Kind) -> bool:
    try:
        return bool([open_source(found, kind) for found in find_sources(path, kind)])
    except InputError:
        return False


def folder_names(sources: Sequence[Source]) -> list[str]:
    """The folder of each source's verdicts in OUT: OUT itself where there is one source."""
    if len(sources) == 1:
        return [""]
    names = [source.name for source in sources]
    names = [
        name if names.count(name) == 1 else f"{name}-{source.path.stem}"
        for name, source in zip(names, sources, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)
    ]
