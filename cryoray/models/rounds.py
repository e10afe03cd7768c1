"""Three rounds of boosting over a fit callable: fit, predict what was held out, filter, and again.

Right and wrong come from predictions on examples that the member was not trained on: each member is
fitted once per fold of groups and once on everything. The fold networks give the held-out predictions
that filter the next round, calibrate the member and set the threshold; the last one is the member.

d2's filter on a fold rests on d1's predictions there, which come from a d1 that never saw that fold; but
a d1 of another fold did, so a trace of a fold's images reaches the weights with which the *other* images
are drawn. Only nested cross-fitting, at K² fits a member, would remove that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from safetensors.torch import load_file

from cryoray.boosting import filtering, operating_point
from cryoray.boosting.calibration import Platt, fit_platt
from cryoray.boosting.filtering import Sampler
from cryoray.boosting.operating_point import Line, OperatingPoint
from cryoray.boosting.voting import disagree, error_bound, score
from cryoray.formats.files import replacing, write_array
from cryoray.models.ensemble import save_weights
from cryoray.models.fit import Epoch, Examples, Fit, FitTask, score_rows
from cryoray.models.networks import DEFAULT_MEMBERS, Network, NetworkConfig
from cryoray.policies import Policy
from cryoray.records import MEMBERS, Event, OnEvent, ignore
from cryoray.settings import FitSettings, TrainSettings

#: Of a finished round: float32 [N], what networks that had not seen an example's group say of it.
HELD_OUT_LOGITS = "held-out.npy"

Levels = Mapping[Literal["project", "micrograph"], np.ndarray]


class FitAll(Protocol):
    """Fits independent networks: one after the other, or side by side on many workers."""

    def __call__(self, tasks: Sequence[FitTask]) -> list[Network]:
        """The fitted networks in the order of the tasks."""


class HeldOut(Protocol):
    """Scores every example with the network of the fold that left it out."""

    def __call__(self, networks: Sequence[Network], fold_of: np.ndarray) -> np.ndarray:
        """Logits, float32 [N], example i scored by ``networks[fold_of[i]]``."""


@dataclass(frozen=True, slots=True, eq=False)
class Boosted:
    """What three rounds gave.

    Attributes:
        networks: d1, d2, d3, each fitted to everything.
        calibration: of each member, on the original distribution.
        point: the operating point.
        review: (low, high) of the review band.
        probabilities: float32 [N, 3], held-out calibrated probabilities of keep.
        suspects: bool [N], labels that are likely wrong.
        bound: each member's error on its own distribution, what follows from it, and what was measured.
        lines: where each policy draws the line; ``point`` and ``review`` are those of the policy chosen.
        expectation: what a project is expected to lose wherever the line is (`operating_point`).
    """

    networks: tuple[Network, Network, Network]
    calibration: tuple[Platt, Platt, Platt]
    point: OperatingPoint
    review: tuple[float, float]
    probabilities: np.ndarray
    suspects: np.ndarray
    bound: dict[str, float]
    lines: Mapping[Policy, Line] = field(default_factory=dict)
    expectation: Sequence[tuple[float, float, float]] = ()


def boost(
    examples: Examples,
    levels: Levels,
    fold_of: np.ndarray,
    settings: TrainSettings,
    *,
    fit_all: FitAll,
    held_out: HeldOut,
    members: Sequence[NetworkConfig] = DEFAULT_MEMBERS,
    times: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    store: Path | None = None,
    on_event: OnEvent = ignore,
) -> Boosted:
    """Train d1, d2 and d3 by boosting by filtering.

    Args:
        examples: all of them labelled.
        levels: group ids of the examples per level, [N] each, for the operating point.
        fold_of: fold of each example, int64 [N]; groups are never split over folds.
        settings: of the training.
        fit_all: how networks are fitted.
        held_out: how examples are scored.
        members: what d1, d2 and d3 look like.
        times: how often each example is learned from beside the others, int64 [N]; None: once. Whatever is
            measured or calibrated, and the operating point, counts each once: to repeat is no evidence.
        weights: particles that each example stands for, float [N], by which policy ``expected`` counts what
            is lost; None: one each.
        store: where finished rounds are kept, so that a run that was killed does not redo them.
        on_event: called with what each round found.
    """
    keep = examples.labels == 1
    none = np.zeros(len(keep), bool)
    suspects = none
    networks: list[Network] = []
    calibration: list[Platt] = []
    samplers: list[Sampler] = []
    p: list[np.ndarray] = []

    for number, (name, config) in enumerate(zip(MEMBERS, members, strict=True)):
        if number == 1:
            suspects = filtering.suspected_labels(p[0], keep)
        sampler = filtered(p, keep, levels, settings, suspects)
        if times is not None:
            sampler = sampler.repeating(times)
        network, logit = _round(
            name, config, sampler, examples, fold_of, settings, fit_all, held_out, store
        )
        networks.append(network)
        samplers.append(sampler)
        calibration.append(fit_platt(logit, keep))
        p.append(calibration[-1](logit))
        on_event(
            Event(
                "round.done",
                {
                    "member": name,
                    "epoch_size": len(sampler),
                    "error": float(np.mean((p[-1] >= 0.5) != keep)),
                    "suspected_labels": int(suspects.sum()),
                },
            )
        )

    probabilities, chosen = np.stack(p, 1), settings.operating_point
    lines = operating_point.lines(
        probabilities, keep, levels, weights=weights, **chosen.model_dump()
    )
    point = lines[chosen.policy].point
    d1, d2, d3 = networks
    c1, c2, c3 = calibration
    return Boosted(
        networks=(d1, d2, d3),
        calibration=(c1, c2, c3),
        point=point,
        review=lines[chosen.policy].review,
        probabilities=probabilities,
        suspects=suspects,
        bound=_bound(p, keep, samplers, point.threshold),
        lines=lines,
        expectation=operating_point.expectation(
            score(p[0], p[1], p[2]), keep, levels["project"], weights
        ),
    )


def filtered(
    p: Sequence[np.ndarray],
    keep: np.ndarray,
    levels: Levels,
    settings: TrainSettings,
    suspects: np.ndarray,
) -> Sampler:
    """What the next member learns from: everything, what d1 gets right and wrong, disagreements.

    Args:
        p: float32 [n] each, held-out probabilities of the members before it.
        keep: bool [n].
        levels: as `boost` takes them.
        settings: of the training.
        suspects: bool [n], labels that are likely wrong.
    """
    if not p:
        return filtering.everything(len(keep))
    if len(p) == 1:
        threshold = _choose(p[0], keep, levels, settings).threshold
        return filtering.right_and_wrong(p[0], keep, threshold, suspects)
    threshold = _choose((p[0] + p[1]) / 2, keep, levels, settings).threshold
    return filtering.disagreements(p[0], p[1], keep, threshold, suspects)


def _round(
    name: str,
    config: NetworkConfig,
    sampler: Sampler,
    examples: Examples,
    fold_of: np.ndarray,
    settings: TrainSettings,
    fit_all: FitAll,
    held_out: HeldOut,
    store: Path | None,
) -> tuple[Network, np.ndarray]:
    """One member: its network, and the logits of all examples from the folds that left them out."""
    kept = None if store is None else _Round(store / name, config, examples.features.shape[1])
    if kept is not None and kept.finished:
        return kept.load()
    seed = settings.seed * 1000 + MEMBERS.index(name) * 100
    tasks = []
    for fold in range(int(fold_of.max()) + 1):
        inside, outside = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        tasks.append(
            FitTask(f"{name}-fold{fold}", config, sampler.within(inside), outside, seed + fold)
        )
    tasks.append(FitTask(f"{name}-final", config, sampler, np.empty(0, np.int64), seed + 99))
    *of_folds, network = fit_all(tasks)
    logit = held_out(of_folds, fold_of)
    if kept is not None:
        kept.save(network, logit)
    return network, logit


@dataclass(frozen=True, slots=True)
class _Round:
    """A finished round on disk: the member's weights and its held-out logits, written last."""

    folder: Path
    config: NetworkConfig
    features: int

    @property
    def finished(self) -> bool:
        return (self.folder / HELD_OUT_LOGITS).is_file()

    def load(self) -> tuple[Network, np.ndarray]:
        network = Network(self.config, self.features)
        network.load_state_dict(load_file(self.folder / "final.safetensors"))
        return network, np.load(self.folder / HELD_OUT_LOGITS)

    def save(self, network: Network, logit: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.folder / "final.safetensors", network.state_dict())
        with replacing(self.folder / HELD_OUT_LOGITS) as temporary, temporary.open("wb") as file:
            write_array(file, logit)


def _choose(
    scores: np.ndarray, keep: np.ndarray, levels: Levels, settings: TrainSettings
) -> OperatingPoint:
    return operating_point.choose(scores, keep, levels, **settings.operating_point.model_dump())


def _bound(
    p: Sequence[np.ndarray], keep: np.ndarray, samplers: Sequence[Sampler], threshold: float
) -> dict[str, float]:
    """Schapire's bound beside what was measured, all on held-out predictions."""
    own = {
        name: _error_on(sampler, (probability >= threshold) != keep)
        for name, probability, sampler in zip(MEMBERS, p, samplers, strict=True)
    }
    worst = max(own.values())
    first_wrong = (p[0] >= 0.5) != keep
    return {
        **own,
        "worst": worst,
        "limit": error_bound(min(worst, 0.5)),
        "vote": float(np.mean((score(p[0], p[1], p[2]) >= threshold) != keep)),
        "d1_wrong": int(first_wrong.sum()),
        "enough_wrong": filtering.ENOUGH_WRONG,
        "disagreements": float(np.mean(disagree(p[0], p[1], threshold))),
    }


def _error_on(sampler: Sampler, wrong: np.ndarray) -> float:
    """The error of a member on the distribution that its sampler draws from."""
    drawn = sum(stratum.count * float(wrong[stratum.rows].mean()) for stratum in sampler.strata)
    return drawn / max(1, len(sampler))


class LocalFits:
    """Fits networks one after the other on one device, without Ray.

    Args:
        examples: what they learn from.
        settings: of each fit.
        device: to train on.
        on_epoch: called after every epoch.
        store: where each network is kept once it is fitted, under its task's name, and looked for
            before it is; of these examples and settings alone. None: nowhere.
        kind: what fits a network; a benchmark compares another one.
    """

    def __init__(
        self,
        examples: Examples,
        settings: FitSettings,
        device: str = "cpu",
        on_epoch: Callable[[Epoch], None] = ignore,
        store: Path | None = None,
        kind: type[Fit] = Fit,
    ) -> None:
        self.examples, self.settings, self.device = examples, settings, device
        self.on_epoch, self.store, self.kind = on_epoch, store, kind
        self.curves: list[Epoch] = []

    def __call__(self, tasks: Sequence[FitTask]) -> list[Network]:
        """See `FitAll`."""
        return [self.fit(task) for task in tasks]

    def fit(self, task: FitTask) -> Network:
        """One network; several threads may fit one each."""
        fit = self.kind(task, self.examples, self.settings, device=self.device)
        kept = None if self.store is None else self.store / f"{task.name}.safetensors"
        if kept is not None and kept.is_file():
            fit.network.load_state_dict(load_file(kept, device=self.device))
            return fit.network
        while not fit.done:
            self.curves.append(fit.run_epoch())
            self.on_epoch(self.curves[-1])
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_weights(kept, fit.result().state_dict())
        return fit.result()

    def held_out(self, networks: Sequence[Network], fold_of: np.ndarray) -> np.ndarray:
        """See `HeldOut`."""
        logit = np.empty(len(fold_of), np.float32)
        for fold, network in enumerate(networks):
            rows = np.flatnonzero(fold_of == fold)
            logit[rows] = score_rows(network, self.examples, rows)
        return logit


def record(boosted: Boosted, curves: Sequence[Epoch], images: np.ndarray) -> str:
    """`training.json`: curves over epochs, the bound table, and the labels that are likely wrong.

    Args:
        boosted: what was trained.
        curves: every epoch of every task.
        images: names of the examples, object [N].
    """
    points = []
    for epoch in curves:
        member, _, part = epoch.task.partition("-")
        fold = int(part.removeprefix("fold")) if part.startswith("fold") else None
        point = asdict(epoch)
        del point["task"]
        points.append({"member": member, "fold": fold, **point})
    suspects = [
        {
            "image": str(images[i]),
            "probability": [round(float(v), 4) for v in boosted.probabilities[i]],
        }
        for i in np.flatnonzero(boosted.suspects)
    ]
    return json.dumps(
        {"curves": points, "bound": boosted.bound, "suspected_labels": suspects}, indent=1
    )
