"""Watch: the service that a session asks, one that runs or one that is started for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryoray.protocol.client import Client
from cryoray.records import Event, OnEvent, ignore
from cryoray.session.watcher import Places
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
    """A client of the service that was named, or of one that runs here while the block lasts.

    Args:
        settings: ``watch.service`` names one; else ``serve`` and ``runtime`` are used.
        where: the session's folders, which a service of our own may read.
        ensembles: for a service of our own.
        on_event: gets what is being done while it starts, and where to find it then.
    """
    if settings.watch.service is not None:
        yield Client(settings.watch.service, settings.serve.token, patience=_PATIENCE)
        return
    given = settings.serve.model_copy(
        update={
            "ensembles": tuple(ensembles or settings.serve.ensembles),
            "roots": (where.root, *settings.watch.roots, *settings.serve.roots),
            "ledger": where.ledger,
        }
    )
    # Ray is not imported where a service runs already: such a machine may have none.
    from cryoray import serving
    from cryoray.engine import runtime

    on_event(Event("service.starting", {"takes": "up to a minute"}))
    with serving.start(settings.model_copy(update={"serve": given})) as running:
        on_event(Event("service.started", {"url": running.url, "ensembles": running.ensembles}))
        if runtime.dashboard():
            token = str(runtime.token_file())
            on_event(Event("dashboard.started", {"url": runtime.dashboard(), "token_file": token}))
        yield Client(running.url, running.token, patience=_PATIENCE)
