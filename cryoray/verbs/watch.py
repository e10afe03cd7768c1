"""Watch: the service that a session uses: in this process, one that runs, or one on Ray that is started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cryoray.protocol.client import Client
from cryoray.records import Event, OnEvent, ignore
from cryoray.session.folder import Places
from cryoray.settings import Settings

#: Seconds for which a full service is asked again before other stacks get their turn.
_PATIENCE = 30.0


@contextmanager
def service_of(
    settings: Settings,
    where: Places,
    ensembles: list[str] | None = None,
    *,
    on_event: OnEvent = ignore,
) -> Iterator[Client]:
    """A client of the service that was named, or of one of our own while the block lasts.

    Our own judges in this process, unless ``watch.service`` says ``start``, a Ray is named or a shadow is
    wanted: then it is started on Ray. Verdicts are the same.

    Args:
        settings: ``watch.service`` names one; else ``serve``, ``registry`` and ``runtime`` are used.
        where: the session's folders, which a service of our own may read.
        ensembles: for a service of our own.
        on_event: gets what is being done while it starts, and where to find it then.
    """
    wanted = settings.watch.service
    if wanted not in (None, "start"):
        with Client(wanted, settings.serve.token, patience=_PATIENCE) as client:
            yield client
        return
    given = settings.serve.model_copy(
        update={
            "ensembles": tuple(ensembles or settings.serve.ensembles),
            "roots": (where.root, *settings.watch.roots, *settings.serve.roots),
            "ledger": where.ledger,
        }
    )
    own = settings.model_copy(update={"serve": given})
    address = settings.runtime.address or os.environ.get("RAY_ADDRESS")
    if wanted == "start" or address or given.shadow:
        with _on_ray(own, on_event) as client:
            yield client
        return
    # Neither is Ray imported here nor torch where a service runs already: such a machine may have none.
    from cryoray.serving import local

    with local.start(own) as here:
        on_event(Event("service.started", {"url": here.url, "ensembles": here.ensembles}))
        with here.client(_PATIENCE) as client:
            yield client


@contextmanager
def _on_ray(settings: Settings, on_event: OnEvent) -> Iterator[Client]:
    from cryoray.engine import runtime
    from cryoray.serving import app

    on_event(Event("service.starting", {"takes": "up to a minute"}))
    with app.start(settings) as running:
        on_event(Event("service.started", {"url": running.url, "ensembles": running.ensembles}))
        if runtime.dashboard():
            token = str(runtime.token_file())
            on_event(Event("dashboard.started", {"url": runtime.dashboard(), "token_file": token}))
        with Client(running.url, running.token, patience=_PATIENCE) as client:
            yield client
