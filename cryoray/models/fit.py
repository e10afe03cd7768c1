"""One member fitted: the training loop, the same on one device and on any number of Ray's workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cryoray.boosting.filtering import Sampler
from cryoray.imaging.augment import augment, draw
from cryoray.models.networks import Network, NetworkConfig, build, logits, loss
from cryoray.settings import FitSettings


class Examples(Protocol):
    """What a fit learns from: images read as they are needed, features and labels at hand."""

    features: np.ndarray
    """float32 [N, F], NaN where missing."""
    labels: np.ndarray
    """int8 [N], 1 keep and 0 discard, or which of several answers is right."""

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Prepared images of these rows, float32 [n, box, box]."""


@dataclass(frozen=True, slots=True)
class FitTask:
    """One network to fit.

    Attributes:
        name: as files are named after it, ``d1-fold0`` or ``d1-final``.
        network: what it looks like.
        sampler: what each epoch shows it.
        held_out: rows that it is measured on after each epoch, int64 [m]; may be empty.
        seed: of weights, sampling and augmentation.
        outputs: of the network.
    """

    name: str
    network: NetworkConfig
    sampler: Sampler
    held_out: np.ndarray
    seed: int
    outputs: int = 1


@dataclass(frozen=True, slots=True)
class Epoch:
    """One point of the curves. Held-out values are None where nothing was held out."""

    task: str
    epoch: int
    loss: float
    learning_rate: float
    images_per_second: float
    val_loss: float | None = None
    val_accuracy: float | None = None


def alone(network: nn.Module) -> nn.Module:
    """How a single worker wraps its network: not at all."""
    return network


@dataclass(frozen=True, slots=True)
class Lane:
    """The workers that fit one network together: each takes its slice of the same global batch."""

    rank: int = 0
    size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = field(default=alone)


class Fit:
    """A fit in progress, one epoch at a time, so that a caller can checkpoint and report in between.

    Every random choice is a function of (task.seed, epoch, step) and is made for the global batch, of
    which a worker takes its slice; group norm knows no batch. So one worker and two follow the same path
    but for the order in which gradients are summed.

    Args:
        task: the network and what it sees.
        examples: where images come from.
        settings: of the fit.
        device: to train on.
        lane: this worker's place among those that share the task.
    """

    def __init__(
        self,
        task: FitTask,
        examples: Examples,
        settings: FitSettings,
        *,
        device: torch.device | str = "cpu",
        lane: Lane | None = None,
    ) -> None:
        self.task, self.examples, self.settings = task, examples, settings
        self.device, self.lane = torch.device(device), lane or Lane()
        network = self.new()
        network.standardise(torch.from_numpy(examples.features[_rows_of(task.sampler)]))
        self.network = network.to(self.device)
        self.averaged = AveragedModel(self.network, multi_avg_fn=_averaging(settings.ema_decay))
        self.wrapped = self.lane.wrap(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.epoch = 0
        self._steps = max(1, round(len(task.sampler) / settings.batch))

    def new(self) -> Network:
        """The network before its first step; a benchmark puts another one in its place."""
        task = self.task
        return build(task.network, self.examples.features.shape[1], task.seed, task.outputs)

    @property
    def done(self) -> bool:
        """Whether all epochs have been run."""
        return self.epoch >= self.settings.epochs

    def run_epoch(self) -> Epoch:
        """Train one epoch and measure the averaged weights on the held-out rows."""
        batch, world = self.settings.batch, self.lane.size
        drawn = self.task.sampler.draw(self.task.seed, self.epoch)
        rows = np.resize(drawn, self._steps * batch).reshape(self._steps, batch)
        mine = slice(self.lane.rank * batch // world, (self.lane.rank + 1) * batch // world)
        self.wrapped.train()
        total, start, rate = 0.0, time.perf_counter(), 0.0
        for step, global_rows in enumerate(rows):
            rate = self._learning_rate(self.epoch * self._steps + step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self._step(step, global_rows, mine)
        seconds = time.perf_counter() - start
        self.epoch += 1
        val_loss, val_accuracy = self._measure()
        return Epoch(
            task=self.task.name,
            epoch=self.epoch,
            loss=total / self._steps,
            learning_rate=rate,
            images_per_second=rows.size / seconds,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
        )

    def _step(self, step: int, rows: np.ndarray, mine: slice) -> float:
        settings = self.settings
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence((self.task.seed, self.epoch, step)).generate_state(1)[0])
        )
        images = torch.from_numpy(self.examples.images(rows[mine])).to(self.device)
        parameters = draw(len(rows), generator, settings.augment, images.shape[-1])
        images = augment(images, parameters[mine])
        hidden = torch.rand(len(rows), 1, generator=generator)[mine] < settings.metadata_dropout
        features = torch.from_numpy(self.examples.features[rows[mine]])
        features = features.masked_fill(hidden, torch.nan).to(self.device)
        left = 1 - self.task.network.dropout
        dropped = torch.rand(len(rows), self.task.network.head, generator=generator)[mine] >= left
        dropout = (~dropped / left).to(self.device)
        labels = torch.from_numpy(self.examples.labels[rows[mine]]).float().to(self.device)
        # The mean over this worker's slice; DDP averages the workers' means. Slices differ by at most
        # one image, which weighs their images by less than 1/batch.
        mean = loss(
            self.wrapped(images, features, dropout), labels, settings.label_smoothing
        ).mean()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(mean)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        return float(mean.detach())

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017)."""
        total = self._steps * self.settings.epochs
        warmup = max(1, round(self.settings.warmup * total))
        if step < warmup:
            return self.settings.learning_rate * (step + 1) / warmup
        along = (step - warmup) / max(1, total - warmup)
        return self.settings.learning_rate * 0.5 * float(1 + np.cos(np.pi * along))

    def _measure(self) -> tuple[float | None, float | None]:
        if not len(self.task.held_out):
            return None, None
        logit = score_rows(self.result(), self.examples, self.task.held_out)
        label = torch.from_numpy(self.examples.labels[self.task.held_out]).float()
        value = loss(torch.from_numpy(logit), label, 0.0).mean()
        answered = logit.argmax(1) if logit.ndim == 2 else logit >= 0
        return float(value), float(np.mean(answered == label.numpy()))

    def result(self) -> Network:
        """The network with averaged weights."""
        network = self.averaged.module
        assert isinstance(network, Network)
        return network

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on after this epoch; tensors and numbers only."""
        return {
            "task": self.task.name,
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same task."""
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])


def score_rows(
    network: Network, examples: Examples, rows: np.ndarray, batch: int = 1024
) -> np.ndarray:
    """Logits of examples, as `Network.forward`, reading at most ``batch`` images at a time."""
    parts = []
    for some in np.array_split(rows, max(1, -(-len(rows) // batch))):
        images = torch.from_numpy(examples.images(some))
        parts.append(logits(network, images, torch.from_numpy(examples.features[some])).numpy())
    return np.concatenate(parts)


def _rows_of(sampler: Sampler) -> np.ndarray:
    return np.unique(np.concatenate([stratum.rows for stratum in sampler.strata]))


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _averaging(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Exponential averaging whose horizon grows with the run, so that early weights are forgotten."""

    @torch.no_grad()
    def average(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        now = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        torch._foreach_lerp_(averaged, current, 1.0 - now)

    return average
