"""Watch: the service that a session asks, one that runs or one that is started for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryoray import serving
from cryoray.protocol.client import Client
from cryoray.session.watcher import Places
from cryoray.settings import Settings

#: Seconds for which a full service is asked again before other stacks get their turn.
_PATIENCE = 30.0


@contextmanager
def service_of(
    settings: Settings, where: Places, ensembles: list[str] | None = None
) -> Iterator[Client]:
    """A client of the service that was named, or of one that runs here while the block lasts."""
    if settings.watch.service is not None:
        yield Client(settings.watch.service, settings.serve.token, patience=_PATIENCE)
        return
    given = settings.serve.model_copy(
        update={
            "ensembles": tuple(ensembles or settings.serve.ensembles),
            "roots": (where.root, *settings.serve.roots),
            "ledger": where.ledger,
        }
    )
    with serving.start(settings.model_copy(update={"serve": given})) as running:
        yield Client(running.url, running.token, patience=_PATIENCE)
