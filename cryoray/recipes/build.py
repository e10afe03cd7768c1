"""The ensembles that ship, made again: ``python -m cryoray.recipes [KIND…]``, or ``make ensembles``.

Each kind has a module of its own, ``cryoray.recipes.KIND``, with ``build(out, work, real) -> Path``: it
simulates, ingests, trains, measures and writes an ensemble with its card into ``out``. What takes long
lies in ``work``, and is not done again when a build that was stopped is started once more. To ship what
was made, copy it to ``cryoray/ensembles/KIND``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import typer

from cryoray import terminal
from cryoray.errors import SettingsError
from cryoray.records import KINDS

#: Writes an ensemble to ``out``: (out, work, real data or None) -> out.
Build = Callable[[Path, Path, Path | None], Path]


def builders() -> dict[str, Build]:
    """How the ensemble of each kind that has one of its own is made."""
    return {
        kind: cast("Build", importlib.import_module(module).build)
        for kind in (*KINDS, "class3d")
        if importlib.util.find_spec(module := f"cryoray.recipes.{kind}")
    }


def main(
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND]…", help="Which; all by default.")
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            help="Folder of real data; where it is absent, simulated data alone are used."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the ensembles.")] = Path("build/ensembles"),
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Make the ensembles that ship."""
    with terminal.complaints(debug=debug):
        known = builders()
        if unknown := sorted(set(kinds or ()) - known.keys()):
            raise SettingsError(
                f"there is no ensemble of kind {unknown[0]} to make",
                remedy=f"choose from {', '.join(known)}",
            )
        found = real.absolute() if real is not None and real.is_dir() else None
        for kind in kinds or known:
            made = known[kind](out.absolute() / kind, out.absolute() / f"{kind}.work", found)
            terminal.out.print(f"{kind}: {made}")
