"""What a member says of an image within its project: a small head on what the member sees.

The *profile* (`models.profile`) is what one project looks like; the *context* is how an ensemble uses it.

A network cannot know from one image how strong a particle of this project is. The head is given, beside
the image, the mean and the deviation of what the member sees in the project's own images, and quantiles of
its logits there, all without labels (adaptive risk minimisation, Zhang et al. 2021, arXiv 2007.02931; sets
by their moments, Zaheer et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from cryoray.models.networks import Network

#: Of the logits of a project's images.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Moments of n images count as n / (n + 4): those of few say little.
_SHRINK = 4.0
#: A project's size as the head is told it, log(1 + n / 32), up to 128 images: more change nothing.
_UNIT, _MOST = 32.0, 128.0
#: Standardised values are cut here; smallest deviation of a project, that of training being 1.
_CLIP, _FLAT = 8.0, 0.2
#: Likewise of what a project's shift follows from.
_SHIFT_CLIP = 4.0
#: A project is as far from training as its third nearest there: one alone may be a stray.
_NEIGHBOUR = 3


class HeadConfig(BaseModel):
    """What a head looks like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(64, ge=8, le=65536)
    encoding: int = Field(24, ge=1, le=4096, description="numbers that a project is summarised in")
    dropout: float = Field(0.2, ge=0, lt=1)


class Moments(NamedTuple):
    """What one member sees in the images of a project, or of each of several (leading dimension p).

    Attributes:
        mean: float32 [p, C], of what it sees.
        deviation: float32 [p, C].
        quantiles: float32 [p, 5], of its logits (`QUANTILES`).
        images: float32 [p], images that this rests on.
    """

    mean: Tensor
    deviation: Tensor
    quantiles: Tensor
    images: Tensor

    def to(self, device: torch.device | str) -> Moments:
        """The same on a device."""
        return Moments(*(each.to(device) for each in self))


def moments(seen: Tensor, logit: Tensor) -> Moments:
    """Those of the images of one project, p = 1.

    Args:
        seen: float32 [n, C], `Network.see` of its images; n may be 0.
        logit: float32 [n].
    """
    if not len(seen):
        nothing = seen.new_zeros(1, seen.shape[1])
        return Moments(nothing, nothing + 1, seen.new_zeros(1, len(QUANTILES)), seen.new_zeros(1))
    exact = seen.double()
    return Moments(
        mean=exact.mean(0, keepdim=True).float(),
        deviation=exact.std(0, correction=0, keepdim=True).float(),
        quantiles=torch.quantile(logit.double(), _levels(logit.device), dim=0)[None].float(),
        images=seen.new_full((1,), float(len(seen))),
    )


def _levels(device: torch.device) -> Tensor:
    return torch.tensor(QUANTILES, dtype=torch.float64, device=device)


class Head(nn.Module):
    """A member's logit within a project.

    Args:
        seen: values that the member sees of an image.
        config: of the head.
    """

    mean: Tensor
    deviation: Tensor
    logit: Tensor

    def __init__(self, seen: int, config: HeadConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(seen))
        self.register_buffer("deviation", torch.ones(seen))
        self.register_buffer("logit", torch.tensor([0.0, 1.0]))
        self.dropout = config.dropout
        self.summary = nn.Linear(seen + len(QUANTILES) + 1, 2 * config.encoding)
        self.encode = nn.Linear(2 * config.encoding, config.encoding)
        self.body = nn.Linear(2 * seen + 1 + config.encoding, config.hidden)
        self.verdict = nn.Linear(config.hidden, 1)

    def standardise(self, seen: Tensor, logit: Tensor) -> None:
        """Learn what is usual from training images: what is seen [N, C], and logits [N]."""
        self.mean.copy_(seen.mean(0))
        self.deviation.copy_(seen.std(0) + 1e-3)
        self.logit.copy_(torch.stack([logit.mean(), logit.std() + 1e-3]))

    def usual(self, project: Moments) -> tuple[Tensor, Tensor]:
        """Mean and deviation [p, C] of a project in units of training; few images say little."""
        shrink = (project.images / (project.images + _SHRINK))[:, None]
        mean = ((project.mean - self.mean) / self.deviation).clamp(-_CLIP, _CLIP) * shrink
        deviation = 1 + (project.deviation / self.deviation - 1) * shrink
        return mean, deviation.clamp(_FLAT, _CLIP)

    def forward(
        self,
        seen: Tensor,
        logit: Tensor,
        project: Moments,
        dropout: torch.Generator | None = None,
    ) -> Tensor:
        """Logits of keep, float32 [p, n].

        Args:
            seen: float32 [p, n, C], what the member sees of images of p projects.
            logit: float32 [p, n], its own logits.
            project: of each.
            dropout: draws what is dropped while training.
        """

        def dropped(hidden: Tensor) -> Tensor:
            hidden = functional.relu(hidden)
            if dropout is None:
                return hidden
            kept = torch.rand(hidden.shape, generator=dropout) >= self.dropout
            return hidden * kept / (1 - self.dropout)

        x = ((seen - self.mean) / self.deviation).clamp(-_CLIP, _CLIP)
        mean, deviation = self.usual(project)
        known = (project.images > 0).to(x.dtype)[:, None]
        size = torch.log1p(project.images.clamp(max=_MOST) / _UNIT)[:, None]
        quantiles = (project.quantiles - self.logit[0]) / self.logit[1]
        summary = dropped(self.summary(torch.cat([deviation, quantiles, size], 1) * known))
        encoded = self.encode(summary) * known
        within = (x - mean[:, None]) / deviation[:, None] * known[:, None]
        of_project = encoded[:, None].expand(-1, x.shape[1], -1)
        own = ((logit - self.logit[0]) / self.logit[1])[..., None]
        hidden = dropped(self.body(torch.cat([x, within, own, of_project], 2)))
        within_logit: Tensor = self.verdict(hidden)[..., 0]
        return within_logit


class InContext(nn.Module):
    """A member within a project, as `networks.logits` takes it: images and metadata in, logits out."""

    def __init__(self, network: Network, head: Head, project: Moments) -> None:
        super().__init__()
        self.network, self.head = network, head
        self.project = project

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Logits of keep within the project, [n]; see `Network.forward`."""
        seen = self.network.see(images)
        own = self.network.say(seen, features)
        logit: Tensor = self.head(seen[None], own[None], self.project.to(seen.device))[0]
        return logit


class Shift(nn.Module):
    """How far a project's scores are moved, in log-odds (`models.fit_shift`): linear in what it is told.

    Args:
        values: numbers that it is told of a project.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    offset: Tensor
    ends: Tensor

    def __init__(self, values: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("deviation", torch.ones(values))
        self.register_buffer("weight", torch.zeros(values))
        self.register_buffer("offset", torch.tensor(0.0))
        self.register_buffer("ends", torch.zeros(2))

    def usual(self, values: Tensor) -> Tensor:
        """Values [p, V] in units of training."""
        return ((values - self.mean) / self.deviation).clamp(-_SHIFT_CLIP, _SHIFT_CLIP)

    def forward(self, values: Tensor, images: Tensor) -> Tensor:
        """By how much the log-odds of keep fall, float32 [p]; of few images, by about as much as usual.

        Args:
            values: float32 [p, V].
            images: float32 [p], that they rest on.
        """
        known = 1 / (1 + _UNIT / images.clamp(min=1e-6))
        moved = (self.usual(values) @ self.weight) * known + self.offset
        return moved.clamp(self.ends[0], self.ends[1])


class Heads(nn.Module):
    """The heads of d1, d2 and d3, and the profiles of training, among which a new one is familiar or not.

    A profile is described by the standardised means and log deviations of all three members, along the
    directions in which those of training differ most; its distance is that to the third nearest of
    them, in units of their spread.

    Args:
        seen: values that each member sees of an image.
        config: of the heads.
        profiles: of training that are kept.
        directions: along which they are compared.
        shift: directions from which a project's shift follows; 0: no project is moved.
    """

    centre: Tensor
    axes: Tensor
    profiles: Tensor

    def __init__(
        self,
        seen: tuple[int, int, int],
        config: HeadConfig,
        profiles: int,
        directions: int,
        shift: int = 0,
    ) -> None:
        super().__init__()
        self.along = shift
        self.of = nn.ModuleList(Head(values, config) for values in seen)
        self.register_buffer("centre", torch.zeros(2 * sum(seen)))
        self.register_buffer("axes", torch.zeros(2 * sum(seen), max(directions, shift)))
        self.register_buffer("profiles", torch.zeros(profiles, directions))
        self.shift = Shift(3 * len(QUANTILES) + shift) if shift else None

    def head(self, member: int) -> Head:
        """That of d1 (0), d2 or d3."""
        head = self.of[member]
        assert isinstance(head, Head)
        return head

    @torch.no_grad()
    def described(self, project: Sequence[Moments]) -> Tensor:
        """float32 [p, 2 (C1 + C2 + C3)], what a profile's distance is measured on.

        Args:
            project: what each member sees of p projects.
        """
        parts = []
        for number, of_member in enumerate(project):
            mean, deviation = self.head(number).usual(of_member.to(self.centre.device))
            parts += [mean, deviation.log()]
        return torch.cat(parts, 1)

    def _points(self, project: Sequence[Moments]) -> Tensor:
        """float32 [p, k], where projects lie along the axes."""
        return (self.described(project) - self.centre) @ self.axes

    @torch.no_grad()
    def distance(self, project: Sequence[Moments]) -> Tensor:
        """float32 [p], how far projects are from those of training."""
        points = self._points(project)
        return nearness(points[:, : self.profiles.shape[1]], self.profiles)

    @torch.no_grad()
    def apart(self, one: Sequence[Moments], other: Sequence[Moments]) -> float:
        """How far two projects (p = 1) are from each other, in the units of `distance`."""
        kept = self.profiles.shape[1]
        return float(torch.dist(self._points(one)[:, :kept], self._points(other)[:, :kept]))

    @torch.no_grad()
    def values(self, project: Sequence[Moments]) -> Tensor:
        """float32 [p, 3 · 5 + directions], what a project's shift follows from."""
        points = self._points(project)
        quantiles = [of_member.quantiles.to(points.device) for of_member in project]
        return torch.cat([*quantiles, points[:, : self.along]], 1)

    @torch.no_grad()
    def moved(self, project: Sequence[Moments]) -> float:
        """By how much the log-odds of keep fall in a project (p = 1)."""
        if self.shift is None:
            return 0.0
        values = self.values(project)
        return float(self.shift(values, project[0].images.to(values.device))[0])


def nearness(points: Tensor, others: Tensor) -> Tensor:
    """Distance of each point [p, k] to the third nearest of others [n, k], [p]; to the last of fewer."""
    return torch.cdist(points, others).sort(1).values[:, min(_NEIGHBOUR, len(others)) - 1]


def directions(described: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centre [D] and axes [D, k] of described profiles [n, D]: their first principal components, whitened."""
    centre = described.mean(0)
    _, size, axes = torch.linalg.svd(described - centre, full_matrices=False)
    count = min(count, len(size))
    spread = (size[:count] / len(described) ** 0.5).clamp(min=1e-6)
    return centre, axes[:count].T / spread
