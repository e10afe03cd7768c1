"""An ensemble becomes the one that is served under a name, as a flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.models import registry
from cryoray.records import Event
from cryoray.settings import load

from .reporter import Reporter, key


@flow(name="promote", flow_run_name="promote {ensemble} as {name}")
def promote(
    ensemble: str | Path, name: str, overrides: dict[str, Any] | None = None, reason: str = ""
) -> str:
    """Swap an ensemble in; running services follow within seconds. Returns its digest.

    Args:
        ensemble: folder, or another name in the registry.
        name: under which it is served.
        overrides: settings over those of file and environment (``registry``).
        reason: for the history.
    """
    return change(name, str(ensemble), overrides or {}, reason)


@flow(name="rollback", flow_run_name="roll {name} back")
def rollback(name: str, overrides: dict[str, Any] | None = None) -> str:
    """Swap the ensemble back in that was active before; returns its digest.

    Args:
        name: under which it was served.
        overrides: settings over those of file and environment (``registry``).
    """
    return change(name, None, overrides or {})


@task(cache_policy=NO_CACHE, task_run_name="change what {name} is")
def change(name: str, ensemble: str | None, overrides: dict[str, Any], reason: str = "") -> str:
    """Promote, or roll back where no ensemble is given, and keep the history as an artifact."""
    root = load(**overrides).registry
    with Reporter("ensemble") as reporter:
        if ensemble is None:
            made = registry.rollback(root, name)
        else:
            folder = registry.resolve(ensemble, root)
            made = registry.promote(folder, root, name, reason=reason)
        assert made is not None
        reporter.event(Event("ensemble.promoted", {"name": name, **made.model_dump(mode="json")}))
    lines = [line.model_dump(mode="json") for line in registry.history(root, name)]
    create_table_artifact(lines, key=key(f"history-{name}"), description=str(root / name))
    return made.digest
