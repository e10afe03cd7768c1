"""The deployment that answers over HTTP: the application, which has judges on Ray Serve do the work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from cryoray.serving.application import create
from cryoray.serving.counts import Counts
from cryoray.serving.dispatcher import Dispatcher
from cryoray.serving.judging import JudgedRange, Work
from cryoray.serving.lineup import Followed, Served, active
from cryoray.serving.shadow import Comparison
from cryoray.settings import ServeSettings


class Ingress:
    """The application on Ray Serve; there may be several.

    Args:
        settings: with its token and roots.
        ensembles: by name; the first is the default.
        root: of the registry.
        supervisor: the deployment that says which are active.
        preparer: the deployment of preparers.
        judges: the deployment of judges, by name of ensemble.
        shadow: the ensemble that judges beside them, and its deployment.
    """

    def __init__(
        self,
        settings: ServeSettings,
        ensembles: Mapping[str, Served],
        root: Path,
        supervisor: DeploymentHandle,
        preparer: DeploymentHandle,
        judges: Mapping[str, DeploymentHandle],
        shadow: tuple[Served, DeploymentHandle] | None = None,
    ) -> None:
        served, every = active(root, ensembles, judges, shadow)
        self.settings, self.counts = settings, Counts(settings.batch)
        self.lineup = Followed(served, supervisor)
        self.comparison = Comparison(
            shadow[0].name if shadow else None, self.lineup, self.beside, self.counts
        )
        self.dispatcher = Dispatcher(
            self.lineup,
            supervisor,
            preparer,
            every,
            self.counts,
            self.comparison,
            settings.batch,
        )

    async def beside(self, work: Work) -> list[JudgedRange]:
        """What the shadow says; see `Dispatcher.beside`."""
        return await self.dispatcher.beside(work)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create(self.settings, self.lineup, self.dispatcher, self.counts, self.comparison)

    async def drain(self) -> int:
        """Take no more requests; how many are not answered yet."""
        self.counts.draining = True
        return self.counts.present
