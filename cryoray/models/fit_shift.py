"""How far a project's scores are moved, so that one line serves projects that are easy and hard to judge.

Where good and bad images of a project are told apart well, the line may lie higher than where they are
not, at the same share of good images lost. How well that is follows from its profile: linearly, in
log-odds, from quantiles of the members' logits and from where the profile lies among those of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cryoray.models.context import Shift

#: What a lost share of a project's good images counts, beside the share of its images judged wrong: with
#: this, about as many good images are lost as policy `expected` allows.
_LOSS = 2.0
#: Log-odds over which an image passes from one side of the line to the other; weight decay.
_SOFT, _DECAY = 0.35, 0.01
#: Good images of a project in which what is lost is counted; what those with fewer count, which have nothing
#: to lose; share of the projects beyond whose own shifts no new one is moved, at either end.
_FEWEST, _EMPTY, _RARE = 5, 2.0, 0.01
_STEPS = 300


def fit_shift(
    values: Tensor,
    log_odds: Sequence[np.ndarray],
    keep: Sequence[np.ndarray],
) -> Shift:
    """Learn it from projects: what is judged wrong and what is lost of the good, both in the mean.

    Args:
        values: float32 [p, V], of each project (`Heads.values`).
        log_odds: of each project's images, [n], by networks that had not seen the project.
        keep: bool [n], likewise.

    Returns:
        it, a function of the arguments alone.
    """
    shift = Shift(values.shape[1])
    shift.mean.copy_(values.mean(0))
    shift.deviation.copy_(values.std(0) + 1e-6)
    usual = shift.usual(values)
    of = torch.from_numpy(np.repeat(np.arange(len(keep)), [len(each) for each in keep]))
    x = torch.from_numpy(np.concatenate(log_odds).astype(np.float32))
    good = torch.from_numpy(np.concatenate(keep))
    weight = torch.from_numpy(np.concatenate([_weights(each) for each in keep]))
    line = torch.zeros(values.shape[1], requires_grad=True)
    offset = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([line, offset], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        at = (usual @ line + offset)[of]
        wrong = torch.sigmoid(torch.where(good, at - x, x - at) / _SOFT)
        total = (weight * wrong).sum() / len(keep) + _DECAY * (line**2).sum()
        torch.autograd.backward(total)
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        shift.weight.copy_(line)
        shift.offset.copy_(offset[0])
        ends = torch.tensor([_RARE, 1 - _RARE])
        shift.ends.copy_(torch.quantile(usual @ line + offset, ends))
    return shift


def _weights(keep: np.ndarray) -> np.ndarray:
    """What each image of a project counts, float32 [n]."""
    good = int(keep.sum())
    if good < _FEWEST:
        return np.full(len(keep), _EMPTY / len(keep), np.float32)
    return (1 / len(keep) + keep * (_LOSS / good)).astype(np.float32)


def cross_fitted(
    values: Tensor, log_odds: Sequence[np.ndarray], keep: Sequence[np.ndarray], part: np.ndarray
) -> np.ndarray:
    """Shift of each project, float32 [p], by what was learned from the projects of other parts (int [p])."""
    moved = np.zeros(len(keep), np.float32)
    for left_out in range(int(part.max()) + 1):
        others, new = np.flatnonzero(part != left_out).tolist(), part == left_out
        learned = fit_shift(
            values[others], [log_odds[i] for i in others], [keep[i] for i in others]
        )
        many = torch.full((int(new.sum()),), torch.inf)
        moved[new] = learned(values[torch.from_numpy(new)], many).numpy()
    return moved
