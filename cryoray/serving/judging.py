"""What judges for the HTTP application, wherever it runs: its requests and its answers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryoray.errors import CryorayError, EnsembleError
from cryoray.formats.opening import Scope
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import Embedded, judge_prepared
from cryoray.models.profile import Profile
from cryoray.records import PreparedRows, RowRange, Verdicts
from cryoray.serving.lineup import Served

#: The active ensemble, the one before it, and one that is promoted next.
_HELD = 3
#: Projects within which a process judges at the same time.
_PROJECTS = 32


@dataclass(frozen=True, slots=True, eq=False)
class JudgedRange:
    """What became of a row range, and how long it took.

    Attributes:
        verdicts: by source row.
        prepare_seconds: that reading and preparing took.
        judge_seconds: that the networks took, for the whole batch.
        batch: images in that batch; 0 for all but one of its ranges, so that it counts once.
    """

    verdicts: Verdicts
    prepare_seconds: float = 0.0
    judge_seconds: float = 0.0
    batch: int = 0


def judge_timed(ensemble: Ensemble, parts: Sequence[PreparedRows]) -> list[JudgedRange]:
    """Judge the images of several ranges in one go (`models.predict.judge_prepared`), and time it."""
    begun = time.perf_counter()
    judged = judge_prepared(parts, ensemble)
    seconds = time.perf_counter() - begun
    images = sum(len(part.rows) for part in parts)
    return [
        JudgedRange(verdicts, judge_seconds=seconds, batch=0 if at else images)
        for at, verdicts in enumerate(judged)
    ]


class Held:
    """The ensembles that a process has loaded, the latest few.

    Loading another while requests are judged is what lets one be promoted without a pause.
    """

    def __init__(self) -> None:
        self._by_digest: OrderedDict[str, Ensemble] = OrderedDict()
        self._within: OrderedDict[tuple[str, str], Ensemble] = OrderedDict()
        self._loading = asyncio.Lock()

    def load(self, served: Served) -> Ensemble:
        """The ensemble, from its files.

        Raises:
            EnsembleError: it is damaged, or another one by now.
        """
        ensemble = Ensemble.load(served.path).to()
        if ensemble.digest != served.digest:
            raise EnsembleError(
                f"is another ensemble than the one that is served, {served.digest}",
                file=served.path,
                remedy="promote it by name, or start the service again",
            )
        self._by_digest[served.digest] = ensemble
        while len(self._by_digest) > _HELD:
            self._by_digest.popitem(last=False)
        return ensemble

    async def get(self, served: Served, profile: Profile | None = None) -> Ensemble:
        """The ensemble, loaded where it was not yet; within a project where its profile is given.

        Raises:
            EnsembleError: it is damaged, or another one by now; or the profile is of another one.
        """
        ensemble = await self._get(served)
        if profile is None:
            return ensemble
        key = (served.digest, profile.digest)
        if key not in self._within:
            self._within[key] = ensemble.with_profile(profile).to()
        self._within.move_to_end(key)
        while len(self._within) > _PROJECTS:
            self._within.popitem(last=False)
        return self._within[key]

    async def _get(self, served: Served) -> Ensemble:
        if served.digest not in self._by_digest:
            async with self._loading:
                if served.digest not in self._by_digest:
                    return await asyncio.to_thread(self.load, served)
        self._by_digest.move_to_end(served.digest)
        return self._by_digest[served.digest]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Rows of one source that are to be judged.

    Attributes:
        served: the ensemble that judges.
        ranges: the rows, planned with its preparation.
        scope: what may be opened for them.
        profile: of the project within which it judges; None: each image by itself.
    """

    served: Served
    ranges: Sequence[RowRange]
    scope: Scope
    profile: Profile | None = None


class JudgesFailedError(CryorayError):
    """The judges or preparers could not do what an ensemble asks of them."""


class Judging(Protocol):
    """Whatever prepares and judges for the HTTP application."""

    async def judge(self, work: Work) -> list[JudgedRange]:
        """Have ranges prepared and judged.

        Raises:
            JudgesFailedError: that cannot be done.
        """

    async def embed(self, work: Work) -> list[Embedded]:
        """What the ensemble's members see in ranges, for a profile.

        Raises:
            JudgesFailedError: that cannot be done.
        """

    async def beside(self, work: Work) -> list[JudgedRange]:
        """The same with a shadow, in what time is left."""

    async def ready(self) -> bool:
        """Whether a request would be judged now; answers within two seconds."""

    async def attend(self) -> None:
        """What is to be done every few seconds."""
