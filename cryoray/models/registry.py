"""Ensembles by name: ``ROOT/NAME/DIGEST/…``, and ``ROOT/NAME/active``, which holds one digest."""

from __future__ import annotations

from pathlib import Path

from cryoray.errors import EnsembleError
from cryoray.models.ensemble import MANIFEST


def resolve(ensemble: str | Path, registry: Path) -> Path:
    """The folder of an ensemble given as a folder, or by its name in the registry.

    Raises:
        EnsembleError: it is neither.
    """
    folder = Path(ensemble).expanduser().absolute()
    if (folder / MANIFEST).is_file():
        return folder
    active = registry / str(ensemble) / "active"
    if Path(ensemble).name == str(ensemble) and active.is_file():
        return registry / str(ensemble) / active.read_text(encoding="utf-8").strip()
    raise EnsembleError(
        "there is no such ensemble, neither a folder with an ensemble.json nor a name in the registry",
        file=ensemble,
        remedy=f"train one with `cryoray train`, or see what {registry} holds",
    )
