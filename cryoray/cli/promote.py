"""``cryoray promote``: make an ensemble the active one under a name, or go back to the one before."""

from __future__ import annotations

from typing import Annotated

import typer

from cryoray import terminal
from cryoray.cli import common


def promote(
    ctx: typer.Context,
    ensemble: Annotated[
        str | None,
        typer.Argument(metavar="ENSEMBLE", help="Folder, or name in the registry."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name under which it is served.")
    ] = None,
    rollback: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name that goes back to the ensemble before."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason, for the history.")] = "",
) -> None:
    """Make an ensemble the active one under a name, or go back to the one before.

    Running services follow within seconds.

    Example: cryoray promote ensembles/ours --as particle
    """
    from cryoray.errors import SettingsError

    if (ensemble is None) != (name is None) or (ensemble is None) == (rollback is None):
        raise SettingsError(
            "it is not clear what to promote",
            remedy="give ENSEMBLE --as NAME, or --rollback NAME alone",
        )
    from cryoray.models import registry

    settings = common.settings(ctx)
    if rollback is not None:
        change = registry.rollback(settings.registry, rollback, reason=reason)
    else:
        assert ensemble is not None
        assert name is not None
        path = registry.resolve(ensemble, settings.registry)
        change = registry.promote(path, settings.registry, name, reason=reason)
    assert change is not None
    terminal.out.print(
        terminal.table(
            f"cryoray promote: {change.change}",
            {
                "name": rollback or name,
                "active": change.digest,
                "before": change.instead_of,
                "registry": settings.registry,
            },
        )
    )
