"""A session watched as a flow: what happens becomes Prefect events, for automations to act on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.cli.watch import service_of
from cryoray.session.ledger import FATES
from cryoray.session.watcher import Watcher, places
from cryoray.settings import load
from flows.telling import Telling, key


@flow(name="session", flow_run_name="session {name}")
def session(
    folder: Path, name: str, hours: float = 96.0, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Judge a session while it is collected, and keep what became of its images.

    A run that is started again goes on where the last one was.

    Args:
        folder: the folder that the microscope's data come into.
        name: of the session.
        hours: after which the watch ends; 0: when what is there was judged.
        overrides: settings over those of file and environment (``watch.service`` names the service,
            ``serve.ensembles`` the ensembles of one that is started here), nested as in the TOML file.
    """
    books = watch(folder, name, hours, overrides or {})
    rows = [{"fate": fate, "images": books[fate]} for fate in FATES]
    create_table_artifact(rows, key=key(f"session-{name}"), description=str(folder))
    return books


@task(cache_policy=NO_CACHE, task_run_name="watch {folder}")
def watch(folder: Path, name: str, hours: float, overrides: dict[str, Any]) -> dict[str, Any]:
    """Call ``cryoray.session.watcher.Watcher``; its events are ``cryoray.micrograph.judged`` and so on."""
    settings, stop = load(**overrides), threading.Event()
    ends = threading.Timer(hours * 3600, stop.set)
    ends.daemon = True
    where = places(folder, name, settings.watch)
    with Telling("session") as told, service_of(settings, where) as client:
        watcher = Watcher(folder, name, settings.watch, client, on_event=told.event)
        try:
            if hours:
                ends.start()
            watcher.run(stop, once=not hours)
            return dict(watcher.books())
        finally:
            ends.cancel()
            watcher.close()
