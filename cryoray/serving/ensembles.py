"""Which ensembles a service begins with: folders, names in the registry, or the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cryoray.errors import SettingsError
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import default, resolve
from cryoray.records import KINDS
from cryoray.serving.lineup import Served


def find_ensembles(given: Sequence[str], registry: Path) -> dict[str, Served]:
    """The ensembles to serve, by name: the one in the registry, or the folder's.

    Where none is named these are the defaults, each under the name of its kind.

    Args:
        given: folders, or names in the registry.
        registry: its folder.

    Raises:
        SettingsError: no ensemble is named and there is no default, or two have the same name.
        EnsembleError: an ensemble cannot be loaded.
    """
    found: dict[str, Served] = {}
    if not given:
        defaults = {kind: path for kind in KINDS if (path := default(kind, registry))}
        if not defaults:
            raise SettingsError(
                "no ensemble is named, and none ships with this cryoray",
                remedy="give --ensemble NAME or DIR",
            )
        return {kind: Served.of(kind, Ensemble.load(path), path) for kind, path in defaults.items()}
    for one in given:
        name = Path(one).name
        if name in found:
            raise SettingsError(
                f"two ensembles are named {name!r}", remedy="rename the folder of one of them"
            )
        found[name] = _find(one, registry)
    return found


def find_shadow(
    given: str | None, registry: Path, ensembles: Mapping[str, Served]
) -> Served | None:
    """The ensemble that judges beside the others; None where none is wanted.

    Args:
        given: its folder, or its name in the registry.
        registry: its folder.
        ensembles: the others.

    Raises:
        SettingsError: it has the name of one of them, or another kind than all of them.
        EnsembleError: it cannot be loaded.
    """
    if given is None:
        return None
    shadow = _find(given, registry)
    if shadow.name in ensembles:
        raise SettingsError(
            f"the shadow has the name of a served ensemble, {shadow.name!r}",
            remedy="promote it under another name",
        )
    if shadow.kind not in {served.kind for served in ensembles.values()}:
        raise SettingsError(
            f"the shadow {shadow.name!r} judges {shadow.kind} images, which none here does",
            remedy="serve it with an ensemble of its kind",
        )
    return shadow


def _find(given: str, registry: Path) -> Served:
    path = resolve(given, registry)
    return Served.of(Path(given).name, Ensemble.load(path), path)
