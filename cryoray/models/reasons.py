"""Why an image was discarded: a fourth small network, learned from discards whose reason is known.

It sees images alone: what a person would name has to be seen, and metadata of a simulation are not
those of a microscope. It is asked about discards only and has no part in the vote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cryoray.boosting.filtering import MAX_REPEATS, Sampler, Stratum, folds_of_groups
from cryoray.models.fit import Epoch, Fit, FitTask, score_rows
from cryoray.models.networks import REASONS_NETWORK, Network
from cryoray.records import REASONS, Reason, ignore
from cryoray.settings import TrainSettings

#: Discards of a reason below which it cannot be learned.
_ENOUGH = 20
#: Of its seeds, apart from those of the members.
_SEED = 900


@dataclass(slots=True, eq=False)
class Discards:
    """Discards whose reasons are known, as `models.fit.Examples`.

    Attributes:
        labels: int8 [N], places in `records.REASONS`, or in the labels that are learned.
        features: float32 [N, 0].
        read: reads the prepared images of some of them.
    """

    labels: np.ndarray
    features: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Prepared images of these rows, float32 [n, box, box]."""
        return self.read(rows)


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A network that names reasons, and how well it does.

    Attributes:
        labels: what its outputs stand for.
        network: fitted to everything.
        confusion: int64 [labels, labels] of images in groups that a twin of it was not fitted to: rows
            are what is true, columns what it answered. All zero where there was a single group.
    """

    labels: tuple[Reason, ...]
    network: Network
    confusion: np.ndarray


def learn(
    reasons: np.ndarray,
    groups: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
    settings: TrainSettings,
    *,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] = ignore,
) -> Learned | None:
    """Learn to tell reasons apart, each as likely as the others, where there are enough to tell apart.

    Args:
        reasons: int8 [N], places in `records.REASONS`.
        groups: group ids, object [N]; one fold of them is held out to measure, before all are used.
        read: reads prepared images of rows (int64 [n]), float32 [n, box, box].
        settings: ``fit``, ``folds`` and ``seed`` are used.
        device: to train on.
        on_epoch: called after every epoch.

    Returns:
        None where fewer than two reasons have enough examples.
    """
    counts = np.bincount(reasons, minlength=len(REASONS))
    places = np.flatnonzero(counts >= _ENOUGH)
    if len(places) < 2:
        return None
    usable = np.flatnonzero(np.isin(reasons, places))
    label = np.searchsorted(places, reasons[usable]).astype(np.int8)
    given = Discards(label, np.empty((len(label), 0), np.float32), lambda rows: read(usable[rows]))
    fold_of = folds_of_groups(groups[usable], settings.folds, settings.seed)
    held_out, rest = np.flatnonzero(fold_of == 0), np.flatnonzero(fold_of != 0)

    def fitted(name: str, rows: np.ndarray, measured: np.ndarray) -> Network:
        # A label that a fold lacks has no rows to draw; the others make up for it.
        sampler = _evenly(label, rows)
        seed = settings.seed * 1000 + _SEED
        task = FitTask(name, REASONS_NETWORK, sampler, measured, seed, outputs=len(places))
        fit = Fit(task, given, settings.fit, device=device)
        while not fit.done:
            on_epoch(fit.run_epoch())
        return fit.result()

    confusion = np.zeros((len(places), len(places)), np.int64)
    if len(rest):
        twin = fitted("reasons-fold0", rest, held_out)
        named = score_rows(twin, given, held_out).argmax(1)
        np.add.at(confusion, (label[held_out], named), 1)
    network = fitted("reasons-final", np.arange(len(label)), np.empty(0, np.int64))
    return Learned(tuple(REASONS[at] for at in places), network.cpu(), confusion)


def _evenly(label: np.ndarray, rows: np.ndarray) -> Sampler:
    """As many of each label in an epoch, and about as many in all as there are rows."""
    of_label = [rows[label[rows] == one] for one in np.unique(label[rows])]
    each = len(rows) // len(of_label)
    return Sampler(tuple(Stratum(some, min(each, MAX_REPEATS * len(some))) for some in of_label))


def section(labels: Sequence[str], confusion: np.ndarray) -> str:
    """What `card.md` says of reasons: the share of each true reason that was called what."""
    total = confusion.sum(1, keepdims=True)
    share = confusion / np.maximum(total, 1)
    measured = int(total.sum())
    lines = [
        "",
        "## Reasons",
        "",
        f"Of what it discards, a fourth network names the likeliest of {len(labels)} reasons. "
        + (
            f"Of {measured:,} discards in groups that its twin had not seen, it names the true one for "
            f"{np.trace(confusion) / measured:.0%}. Rows are what is true, columns what it says, %."
            if measured
            else "How often it is right could not be measured: all reasons are of one group."
        ),
        "",
        f"| | {' | '.join(labels)} | images |",
        f"|---|{'---|' * len(labels)}---|",
        *(
            f"| {name} | {' | '.join(f'{100 * one:.0f}' for one in row)} | {int(n):,} |"
            for name, row, n in zip(labels, share, total[:, 0], strict=True)
        ),
        "",
    ]
    return "\n".join(lines)
