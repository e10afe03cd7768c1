"""How well are the 2D classes of a protein judged by an ensemble that never saw that protein?

``python -m benchmarks.accuracy.class2d`` trains without beta-galactosidase and judges it, then without
TcdA1, by images alone, by metadata alone and by both, beside the rank of a class's particles within its
job. It prepares what ``make ensembles KIND=class2d`` does, in the same folder, and needs RELION, and human
selections in ``../shared/data``; ``CRYORAY_BENCH_EPOCHS`` shortens the training,
``CRYORAY_BENCH_PARTS=both`` leaves out the ablation. An hour on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Row, main, result
from cryoray.boosting.operating_point import ask_third
from cryoray.boosting.voting import score
from cryoray.metrics.accuracy import auroc, confusion
from cryoray.models.fit import Examples, score_rows
from cryoray.models.rounds import Boosted, Levels
from cryoray.preparation.examples import SetExamples
from cryoray.preparation.prepared import PreparedSet
from cryoray.recipes.class2d import (
    HUMAN,
    PROJECTS,
    RELION_JOBS,
    SIMULATED,
    boosted_of,
    learned_from,
    one_thread,
    prepared_sets,
    settings_of,
)
from cryoray.settings import Settings
from cryoray.terminal import Show
from cryoray.verbs.ablation import Blind

_REAL = Path(__file__).parents[3] / "shared/data"
_WORK = Path("build/ensembles/class2d.work")
_RANK = "class_distribution_rank"
_PARTS = ("both", "images", "metadata")
_RESAMPLES = 2000


class ImagesAlone:
    """Examples whose metadata are missing.

    Args:
        examples: all there is to see.
    """

    def __init__(self, examples: SetExamples) -> None:
        self.images, self.labels = examples.images, examples.labels
        self.features = np.full_like(examples.features, np.nan)


def part_of(examples: SetExamples, part: str) -> Examples:
    """Examples of which images or metadata are hidden, or neither: ``both`` are seen."""
    if part == "metadata":
        return Blind(examples.features, examples.labels)
    return examples if part == "both" else ImagesAlone(examples)


def measure() -> dict[str, Any]:
    """AUROC, accuracy and false-negative rate with 95 % intervals over resampled classes."""
    epochs = os.environ.get("CRYORAY_BENCH_EPOCHS")
    parts = os.environ.get("CRYORAY_BENCH_PARTS", " ".join(_PARTS)).split()
    settings = settings_of(int(epochs)) if epochs else settings_of()
    rows: list[Row] = []
    with Show() as show, one_thread():
        sets = prepared_sets(_WORK, PROJECTS, RELION_JOBS, _REAL, show)
        if any(protein not in sets for protein in HUMAN):
            raise SystemExit(f"{_REAL} has no class-averages-human")
        for protein in HUMAN:
            examples, _, times = learned_from(sets, settings, without=protein)
            held_out = SetExamples(sets[protein], [_labelled(sets[protein])], examples.names)
            keep = held_out.labels == 1
            rows.append(_baseline(protein, held_out, keep))
            for part in parts:
                boosted = _trained(examples, times, part, settings, show)
                scores = judged(boosted, part_of(held_out, part), len(keep))
                how = f"{part if part == 'both' else f'{part} alone'}, threshold beforehand"
                rows.append(_row(protein, how, scores, keep, boosted.point.threshold))
    return result(
        "How well are 2D classes of a protein judged that was not trained on?",
        rows,
        ratios=(),
        notes=[
            "95 % intervals over resampled classes of the one protein; no interval covers other proteins",
            f"{len(sets[SIMULATED])} simulated proteins, {settings.train.fit.epochs} epochs",
        ],
    )


def _labelled(sets: Sequence[Path]) -> np.ndarray:
    (path,) = sets
    return np.flatnonzero(PreparedSet.open(path).labels >= 0)


def _trained(
    examples: SetExamples, times: np.ndarray, part: str, settings: Settings, show: Show
) -> Boosted:
    levels: Levels = {
        "project": examples.groups("project"),
        "micrograph": examples.groups("micrograph"),
    }
    return boosted_of(part_of(examples, part), levels, settings, show, times=times)[0]


def judged(boosted: Boosted, examples: Examples, n: int) -> np.ndarray:
    """Scores [n] as the ensemble gives them, d3 asked where d1 and d2 disagree."""
    d1, d2, d3 = (
        platt(score_rows(network, examples, np.arange(n)))
        for network, platt in zip(boosted.networks, boosted.calibration, strict=True)
    )
    return score(d1, d2, ask_third(d1, d2, d3, boosted.point.threshold))


def _baseline(protein: str, examples: SetExamples, keep: np.ndarray) -> Row:
    """The rank alone, at the threshold that loses 3 % of these very classes: better than is fair."""
    rank = examples.features[:, examples.names.index(_RANK)]
    threshold = float(np.sort(rank[keep])[int(0.03 * keep.sum())])
    return _row(
        protein, "rank of particles alone, threshold on the test set", rank, keep, threshold
    )


def _row(protein: str, how: str, scores: np.ndarray, keep: np.ndarray, threshold: float) -> Row:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(keep), size=len(keep)) for _ in range(_RESAMPLES)]
    numbers = np.array([_numbers(scores[i], keep[i], threshold) for i in drawn])
    low, high = np.quantile(numbers, (0.025, 0.975), axis=0)
    row: Row = {"held out": protein, "by": how}
    names = ("AUROC", "accuracy", "lost")
    for name, value, *ends in zip(names, _numbers(scores, keep, threshold), low, high, strict=True):
        row[name] = f"{value:.3f}"
        row[f"{name} 95 %"] = f"{ends[0]:.3f}–{ends[1]:.3f}"
    return row


def _numbers(scores: np.ndarray, keep: np.ndarray, threshold: float) -> tuple[float, float, float]:
    counts = confusion(keep, scores, threshold)
    return auroc(keep, scores), counts.accuracy or 0.0, counts.false_negative_rate or 0.0


if __name__ == "__main__":
    main(measure)
