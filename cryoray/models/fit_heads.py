"""Heads fitted project by project: each step shows images of a few projects, each with a context of its own.

A context is drawn from the project's images: of any size down to none, with any share of junk, with the
images that are judged among them or not. So a head learns what to make of few images, and of many of
which hardly any is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cryoray.models.context import Head, HeadConfig, Moments, moments
from cryoray.models.networks import seeded

#: Projects in a step, images judged of each, and images in the largest context.
_PROJECTS, _JUDGED, _CONTEXT = 12, 48, 128
#: Of the contexts: those that are none; those of which the share of junk is drawn anew; those
#: that may hold the images that are judged.
_NONE, _MIXED, _WITH_SELF = 0.1, 0.5, 0.5
_LEAST_JUNK, _MOST_JUNK = 0.02, 0.98
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 1e-2
#: Nothing is learned from a project of fewer images.
_FEWEST = 8


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """What one network saw in images of many projects.

    Attributes:
        seen: float32 [N, C].
        logit: float32 [N].
        keep: bool [N].
        weight: float32 [N], of each image's loss, as boosting weighs it.
        projects: rows of each project, int64; a project may be there in several versions.
    """

    seen: Tensor
    logit: Tensor
    keep: np.ndarray
    weight: np.ndarray
    projects: Sequence[np.ndarray]


def fit_head(looked: Looked, config: HeadConfig, seed: int, steps: int) -> Head:
    """A head for the network that looked; a function of all of its arguments alone."""
    rng = np.random.default_rng(seed)
    head = seeded(lambda: Head(looked.seen.shape[1], config), seed)
    head.standardise(looked.seen, looked.logit)
    projects = [
        rows for rows in looked.projects if len(rows) >= _FEWEST and looked.weight[rows].any()
    ]
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    dropout = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        chosen = rng.choice(len(projects), min(_PROJECTS, len(projects)), replace=False)
        shown = [_episode(projects[i], looked.keep, rng) for i in chosen.tolist()]
        judged = np.stack([each[0] for each in shown])
        contexts = [moments(looked.seen[each[1]], looked.logit[each[1]]) for each in shown]
        project = Moments(*(torch.cat(parts) for parts in zip(*contexts, strict=True)))
        within_logit = head(looked.seen[judged], looked.logit[judged], project, dropout)
        label = torch.from_numpy(looked.keep[judged]).float()
        weight = torch.from_numpy(looked.weight[judged])
        each = functional.binary_cross_entropy_with_logits(within_logit, label, reduction="none")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((each * weight).sum() / weight.sum().clamp(min=1e-6))
        optimizer.step()
    return head.eval()


def _episode(
    rows: np.ndarray, keep: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a project that are judged, always as many, and those of their context."""
    order = rng.permutation(rows)
    half = max(1, len(rows) // 2)
    judged = np.resize(order[: min(_JUDGED, half)], _JUDGED)
    rest = rows if rng.random() < _WITH_SELF else order[min(_JUDGED, half) :]
    if rng.random() < _NONE:
        return judged, rest[:0]
    good = keep[rest]
    chance = np.full(len(rest), 1 / len(rest))
    if good.any() and not good.all() and rng.random() < _MIXED:
        junk = rng.uniform(_LEAST_JUNK, _MOST_JUNK)
        chance = np.where(good, (1 - junk) / good.sum(), junk / (~good).sum())
    size = round(float(np.exp(rng.uniform(np.log(2), np.log(_CONTEXT)))))
    # Another draw may show an image twice; a project has more images than are stored of it here.
    return judged, rng.choice(rest, size, p=chance)
