"""Which ensemble answers under each name: what is promoted is tried, takes over, makes way if it fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cryoray.errors import CryorayError, EnsembleError, InternalError, causes
from cryoray.models import registry
from cryoray.models.ensemble import Ensemble
from cryoray.protocol.messages import ServiceEvent, Training
from cryoray.records import Kind
from cryoray.settings import PreparationSettings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from cryoray.serving.supervisor import Standing

#: Of the service's own processes; Ray Serve writes it to their log files.
_log = logging.getLogger("ray.serve.cryoray")

_EVENTS_KEPT = 100
#: Looks in a row at which no judge may hold an ensemble on probation.
_MISSES = 3
#: Seconds in which the supervisor has to decide; rolling back writes one small file.
_DECISION_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """An ensemble as the ingress knows it: everything but its weights."""

    name: str
    path: Path
    digest: str
    kind: Kind
    preparation: PreparationSettings
    threshold: float
    training: Training
    context: bool = False  # whether it judges within projects by their profiles
    seen: tuple[int, ...] = ()  # values that each member sees of an image: what a profile is of

    @classmethod
    def of(cls, name: str, ensemble: Ensemble, path: Path) -> Served:
        """What a request has to know of an ensemble."""
        return cls(
            name=name,
            path=path,
            digest=ensemble.digest,
            kind=ensemble.kind,
            preparation=ensemble.preparation,
            threshold=ensemble.threshold,
            context=ensemble.takes_profile,
            seen=tuple(network.channels for network in ensemble.networks),
            training=Training(
                prevalence=ensemble.manifest.prevalence,
                features={
                    feature: (mean, deviation)
                    for feature, mean, deviation in zip(
                        ensemble.features,
                        ensemble.networks[0].feature_mean.tolist(),
                        ensemble.networks[0].feature_std.tolist(),
                        strict=True,
                    )
                },
            ),
        )

    def follows(self, root: Path) -> bool:
        """Whether what is promoted under its name takes its place: it is the registry's, or it ships."""
        shipped = registry.shipped(self.name)
        return self.path == shipped or self.path.is_relative_to(root / self.name)

    def now(self, root: Path) -> Served:
        """The one that is active under its name by now; itself where that cannot be had."""
        if not self.follows(root):
            return self
        try:
            path = registry.resolve(self.name, root)
            found = Served.of(self.name, Ensemble.load(path), path)
        except CryorayError:
            return self
        return found if found.kind == self.kind else self


def active(
    root: Path,
    ensembles: Mapping[str, Served],
    judges: Mapping[str, DeploymentHandle],
    shadow: tuple[Served, DeploymentHandle] | None,
) -> tuple[dict[str, Served], dict[str, DeploymentHandle]]:
    """The ensembles as they are active by now, and their judges, by name; the shadow last."""
    served, every = {name: one.now(root) for name, one in ensembles.items()}, dict(judges)
    if shadow is not None:
        served[shadow[0].name], every[shadow[0].name] = shadow
    return served, every


def attempt(name: str, path: Path) -> Served:
    """Load an ensemble and have it judge noise: what cannot do this is not let near a request.

    Raises:
        EnsembleError: it is damaged, or its scores are not probabilities.
    """
    ensemble = Ensemble.load(path)
    box, n = ensemble.preparation.box, 8
    noise = np.random.default_rng(0).normal(size=(n, box, box)).astype(np.float32)
    missing = np.full((n, len(ensemble.features)), np.nan, np.float32)
    judged = ensemble.judge(noise, missing, everyone=True)
    for values in (judged.score, judged.d1, judged.d2, judged.d3):
        if not ((values >= 0) & (values <= 1)).all():
            raise EnsembleError("its scores are not probabilities", file=path, remedy="train again")
    return Served.of(name, ensemble, path)


class Active(Protocol):
    """The ensembles by name, as they are active now, and what became of earlier ones."""

    @property
    def events(self) -> Sequence[ServiceEvent]:
        """The latest of what happened, oldest first."""

    def __getitem__(self, name: str) -> Served: ...

    def __iter__(self) -> Iterator[str]: ...

    def items(self) -> ItemsView[str, Served]:
        """Names and ensembles, the default first."""

    def before(self, served: Served) -> Served | None:
        """What would take the place of an ensemble on probation; None where it is not."""

    async def follow(self) -> None:
        """Look once at what is active."""

    async def failed(self, served: Served, error: BaseException) -> Served | None:
        """What answers instead of an ensemble whose judges failed; None where there is nothing."""


class Lineup(Mapping[str, Served]):
    """The ensembles by name, as they are active now; used in one event loop.

    Args:
        served: to begin with; the first is the default.
        root: of the registry; what is served from elsewhere never changes.
        probation: seconds in which an ensemble that fails makes way for the one before.
        attempt: tries an ensemble where it can do no harm.
        hold: has all judges load an ensemble.

    Attributes:
        events: the latest of what happened.
    """

    def __init__(
        self,
        served: Mapping[str, Served],
        root: Path,
        *,
        probation: float,
        attempt: Callable[[str, Path], Awaitable[Served]],
        hold: Callable[[Served], Awaitable[None]],
    ) -> None:
        self._now = dict(served)
        self._root, self._probation = root, probation
        self._attempt, self._hold = attempt, hold
        self._before: dict[str, tuple[Served, float]] = {}
        self._refused: dict[str, str] = {}
        self._misses: Counter[str] = Counter()
        self.events: deque[ServiceEvent] = deque(maxlen=_EVENTS_KEPT)
        self._number = 0

    def __getitem__(self, name: str) -> Served:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def before(self, served: Served) -> Served | None:
        """What would take the place of an ensemble that is on probation; None where it is not."""
        kept = self.probation(served.name) if self._now[served.name] == served else None
        return kept[0] if kept else None

    def probation(self, name: str) -> tuple[Served, float] | None:
        """What would take the place of a name's ensemble, and for how many seconds still."""
        before, until = self._before.get(name, (None, 0.0))
        left = until - time.monotonic()
        return (before, left) if before is not None and left > 0 else None

    async def follow(self) -> None:
        """Look once at what is active, take it up, and look after what is on probation."""
        for name, now in list(self._now.items()):
            if not now.follows(self._root):
                continue
            try:
                digest = await asyncio.to_thread(registry.active, self._root, name)
            except (CryorayError, OSError) as error:
                self._refuse(name, "?", error)
                continue
            if digest != self._refused.get(name):
                self._refused.pop(name, None)
                if digest not in (None, now.digest):
                    assert digest is not None
                    await self._take_up(now, digest)
            if self.before(self._now[name]) is not None:
                await self._look_after(self._now[name])

    async def failed(self, served: Served, error: BaseException) -> Served | None:
        """What to ask instead of an ensemble whose judges failed; None where there is nothing."""
        now = self._now[served.name]
        if now != served:
            return now
        before = self.before(served)
        if before is None:
            return None
        self._now[served.name] = before
        await self._roll_back(served.digest, before, error)
        return before

    async def _take_up(self, now: Served, digest: str) -> None:
        path = self._root / now.name / digest
        try:
            new = await self._attempt(now.name, path)
            if new.digest != digest:
                raise EnsembleError(
                    f"holds another ensemble, {new.digest}", file=path, remedy="promote it again"
                )
            if new.kind != now.kind:
                raise EnsembleError(
                    f"judges {new.kind} images, and {now.name} is of kind {now.kind}",
                    file=path,
                    remedy="promote it under another name",
                )
        except Exception as error:
            await self._roll_back(digest, now, error)
            return
        if not await self._held(new, lambda error: self._roll_back(digest, now, error)):
            return
        self._before[now.name] = (now, time.monotonic() + self._probation)
        self._now[now.name] = new
        self._say("ensemble.promoted", new, instead_of=now.digest)

    async def _look_after(self, served: Served) -> None:
        """Roll back what the judges cannot hold, though nobody asks them anything."""
        await self._held(served, lambda error: self.failed(served, error))

    async def _held(
        self, served: Served, give_up: Callable[[BaseException], Awaitable[object]]
    ) -> bool:
        """Whether the judges hold an ensemble; a judge that was lost is back within a few looks."""
        try:
            await self._hold(served)
        except Exception as error:
            self._misses[served.digest] += 1
            if isinstance(error, EnsembleError) or self._misses[served.digest] >= _MISSES:
                del self._misses[served.digest]
                await give_up(error)
            return False
        self._misses.pop(served.digest, None)
        return True

    async def _roll_back(self, bad: str, good: Served, error: BaseException) -> None:
        reason = sentence(error)
        self._before.pop(good.name, None)
        try:
            await asyncio.to_thread(
                registry.rollback, self._root, good.name, instead_of=bad, reason=reason
            )
        except (CryorayError, OSError) as unwritten:
            # The good one is served all the same, whatever the file says.
            self._refuse(good.name, bad, unwritten)
        self._say("ensemble.rolled-back", good, instead_of=bad, reason=reason)

    def _refuse(self, name: str, digest: str, error: BaseException) -> None:
        if self._refused.get(name) != digest:
            self._refused[name] = digest
            self._say("registry.failed", self._now[name], reason=sentence(error))

    def _say(self, what: str, served: Served, **more: str) -> None:
        data = {"ensemble": served.name, "digest": served.digest, **more}
        _log.warning("%s %s", what, data)
        self._number += 1
        self.events.append(
            ServiceEvent(number=self._number, time=datetime.now(UTC), name=what, data=data)
        )


class Followed(Mapping[str, Served]):
    """The ensembles as the supervisor last reported them; used in one event loop.

    Args:
        served: to begin with; the first is the default.
        supervisor: its deployment, which decides what answers instead of one that fails.
    """

    def __init__(self, served: Mapping[str, Served], supervisor: DeploymentHandle) -> None:
        self._now, self._supervisor = dict(served), supervisor
        self._before: dict[str, tuple[Served, float]] = {}
        self.events: Sequence[ServiceEvent] = ()

    def __getitem__(self, name: str) -> Served:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def update(self, standing: Standing) -> None:
        """Take over what the supervisor says."""
        now = time.monotonic()
        self._now = dict(standing.served)
        self._before = {name: (one, now + left) for name, (one, left) in standing.before.items()}
        self.events = standing.events

    def before(self, served: Served) -> Served | None:
        """What would take the place of an ensemble on probation; None where it is not."""
        if self._now[served.name] != served:
            return None
        before, until = self._before.get(served.name, (None, 0.0))
        return before if time.monotonic() < until else None

    async def follow(self) -> None:
        """Nothing: the supervisor does."""

    async def failed(self, served: Served, error: BaseException) -> Served | None:
        """What answers instead of an ensemble whose judges failed; None where there is nothing."""
        if self._now[served.name] != served:
            return self._now[served.name]
        try:
            async with asyncio.timeout(_DECISION_SECONDS):
                other: Served | None = await self._supervisor.failed.remote(served, sentence(error))
        except Exception:  # the supervisor is away: for this request, its last report
            _log.exception("the supervisor does not say what answers instead of %s", served.name)
            return self.before(served)
        if other is not None:
            self._now[served.name] = other
        return other


def sentence(error: BaseException) -> str:
    """What went wrong; an error of another process arrives wrapped."""
    for cause in causes(error):
        if isinstance(cause, CryorayError) and not isinstance(cause, InternalError):
            return str(cause)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
