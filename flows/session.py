"""A session watched as a flow: what happens becomes Prefect events, for automations to act on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment

from cryoray.records import Event, OnEvent
from cryoray.session.folder import places
from cryoray.session.schema import FATES
from cryoray.session.watcher import Watcher
from cryoray.settings import Settings, load
from cryoray.verbs.watch import service_of

from .reporter import Reporter, key


@flow(name="collections", flow_run_name="collections in {root}")
def collections(root: Path, deployment: str = "session/session", days: float = 3.0) -> list[str]:
    """Open a session for each new folder: one run for each, however often this one looks.

    Args:
        root: the folder in which microscopes make a folder for each collection.
        deployment: of the flow ``session`` that is started.
        days: a folder that was last changed longer ago is no new one.

    Returns:
        the names of the sessions that were asked for, among them those that run.
    """
    asked = []
    for folder in new_folders(Path(root).absolute(), days):
        run_deployment(
            deployment,
            parameters={"folder": str(folder), "name": folder.name},
            timeout=0,
            idempotency_key=f"cryoray-session-{folder}",
            as_subflow=False,
        )
        asked.append(folder.name)
    return asked


def new_folders(root: Path, days: float) -> list[Path]:
    """Folders in ``root`` that were changed in the last days, hidden ones left out, by name."""
    since = time.time() - days * 86400
    return sorted(
        folder
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.stat().st_mtime > since
    )


@flow(name="session", flow_run_name="session {name}")
def session(
    folder: Path,
    name: str,
    hours: float = 96.0,
    idle: float = 12.0,
    ensemble: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge a session while it is collected, and keep what became of its images.

    A run that is started again goes on where the last one was.

    Args:
        folder: the folder that the microscope's data come into.
        name: of the session.
        hours: after which the watch ends; 0: when what is there was judged.
        idle: hours without a new micrograph after which it ends as well.
        ensemble: that judges the particles: a name that the service knows; where the session starts its
            own, a name in the registry or a folder. Empty: as the settings say.
        overrides: settings over those of file and environment (``watch.service`` names the service,
            ``serve.ensembles`` the ensembles of one that is started here), nested as in the TOML file.
    """
    row_counts = watch(folder, name, hours, idle, overrides or {}, ensemble)
    rows = [{"fate": fate, "images": row_counts[fate]} for fate in FATES]
    create_table_artifact(rows, key=key(f"session-{name}"), description=str(folder))
    return row_counts


@task(cache_policy=NO_CACHE, task_run_name="watch {folder}")
def watch(
    folder: Path,
    name: str,
    hours: float,
    idle: float,
    overrides: dict[str, Any],
    ensemble: str | None = None,
) -> dict[str, Any]:
    """Call ``cryoray.session.watcher.Watcher``; its events are ``cryoray.micrograph.judged`` and so on."""
    settings, stop = with_ensemble(load(**overrides), ensemble), threading.Event()
    clock = Clock(stop, hours * 3600, idle * 3600)
    where = places(folder, name, settings.watch)
    with Reporter("session", name) as reporter, service_of(settings, where) as client:
        watcher = Watcher(
            folder, name, settings.watch, client, on_event=clock.heard(reporter.event)
        )
        try:
            if hours:
                clock.start()
            watcher.run(stop, once=not hours)
            return dict(watcher.row_counts())
        finally:
            stop.set()
            watcher.close()


def with_ensemble(settings: Settings, ensemble: str | None) -> Settings:
    """The settings, with the ensemble that the form named: a service's, or one that is served here."""
    if not ensemble:
        return settings
    if settings.watch.service in (None, "start"):
        serve = settings.serve.model_copy(update={"ensembles": (ensemble,)})
        return settings.model_copy(update={"serve": serve})
    watch = settings.watch.model_copy(update={"ensemble": ensemble})
    return settings.model_copy(update={"watch": watch})


class Clock(threading.Thread):
    """Sets ``stop`` when time is up, or when nothing was heard for a while.

    Args:
        stop: what is set; who sets it ends the clock.
        longest: seconds in all.
        idle: seconds without an event.
    """

    def __init__(self, stop: threading.Event, longest: float, idle: float) -> None:
        super().__init__(daemon=True)
        self._stop_watch, self._idle = stop, idle
        self._end = time.monotonic() + longest
        self._last = time.monotonic()

    def heard(self, on_event: OnEvent) -> OnEvent:
        """Callbacks that pass events on, and count as signs of life what is new from the microscope."""

        def hear(happened: Event) -> None:
            if happened.name.startswith("micrograph."):
                self._last = time.monotonic()
            on_event(happened)

        return hear

    def run(self) -> None:
        """Wait."""
        while (left := min(self._end, self._last + self._idle) - time.monotonic()) > 0:
            if self._stop_watch.wait(left):
                return
        self._stop_watch.set()
