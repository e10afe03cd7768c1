"""How accurate are ensembles on what they have not seen?

``python -m benchmarks.accuracy [CASE…]`` with the cases

unseen    the particle ensemble that ships, on simulated structures that it was not trained on: raw noise,
          signal-to-noise ratio 0.05 at 256 px and 1 to 1.5 Å/px, 40 % junk in seven kinds in equal parts
empiar    five folds over the micrographs of EMPIAR-10017, trained anew each; needs ``shared/data`` beside
          the project, and an hour

Intervals are of 95 %, from a bootstrap over projects (over images where there is one project).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Row, main, result
from cryoray.formats.source import open_source
from cryoray.inference.classes import judge_here
from cryoray.inference.evaluate import cross_validate
from cryoray.ingest import ingest
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import shipped
from cryoray.settings import Settings, SimulateSettings, load
from cryoray.simulation import read_truth, simulate
from cryoray.simulation.junk import KINDS, PARTICLE
from cryoray.training import train
from cryoray.validation.accuracy import auroc

_REAL = Path(__file__).parents[2] / "shared/data/particles-empiar10017"
#: Structures and images of each; seed and number make a structure, and training has other seeds.
STRUCTURES, IMAGES, SEED = 12, 200, 990_000
_DRAWS = 1000


def measure() -> dict[str, Any]:
    """Rows of the cases that were asked for; all by default."""
    wanted = sys.argv[1:] if __name__ == "__main__" else []
    rows: list[Row] = []
    notes: list[str] = []
    for name in wanted or CASES:
        made, said = CASES[name]()
        rows += made
        notes += said
    question = "How accurate are ensembles, at their own threshold, on what they have not seen?"
    return result(question, rows, ratios=(), notes=notes)


def unseen() -> tuple[list[Row], list[str]]:
    """The ensemble that ships, on structures that it has not seen."""
    folder = shipped("particle")
    if folder is None:
        return [], ["unseen: no particle ensemble ships with this checkout"]
    ensemble = Ensemble.load(folder)
    scores, kinds, groups = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(STRUCTURES):
            (project,) = simulate(Path(temporary) / str(number), Settings(simulate=_unseen(number)))
            score, kind = judged(project, ensemble)
            scores.append(score)
            kinds.append(kind)
            groups.append(np.full(len(score), number))
    kind = np.concatenate(kinds)
    row = numbers(
        "simulated raw noise, unseen structures",
        kind == PARTICLE,
        np.concatenate(scores),
        ensemble.threshold,
        np.concatenate(groups),
    )
    found = np.concatenate(scores) < np.float32(ensemble.threshold)
    recall = ", ".join(f"{name} {found[kind == name].mean():.0%}" for name in KINDS)
    return [row], [f"unseen: junk found by kind: {recall}"]


def _unseen(number: int) -> SimulateSettings:
    """Raw noise as the goal states it."""
    pixel_size = round(float(np.random.default_rng((SEED, number)).uniform(1.0, 1.5)), 3)
    return SimulateSettings(
        projects=1,
        first=number + 1,
        images=IMAGES,
        per_micrograph=50,
        box=256,
        pixel_size=pixel_size,
        snr=0.05,
        junk=0.4,
        human_error=0.0,
        seed=SEED,
    )


def judged(project: Path, ensemble: Ensemble) -> tuple[np.ndarray, np.ndarray]:
    """Scores, float32 [n], and what is true, object [n], of a simulated project's images."""
    table, _ = judge_here(open_source(project / "particles.star", "particle"), ensemble)
    kind = np.array([row["kind"] for row in read_truth(project)], object)
    return table["score"].to_numpy(), kind[table["row"].to_numpy()]


def empiar() -> tuple[list[Row], list[str]]:
    """Five folds over the micrographs of EMPIAR-10017, each judged at its own ensemble's threshold."""
    if not _REAL.is_dir():
        return [], ["empiar: shared/data/particles-empiar10017 is not beside the project"]
    settings = load(train={"fit": {"epochs": 20}})
    with tempfile.TemporaryDirectory() as temporary:
        prepared = ingest([_REAL], Path(temporary) / "set", settings)
        found = cross_validate(prepared, Path(temporary) / "cv", settings, train=train, folds=5)
    row: Row = {
        "case": "EMPIAR-10017, five folds over micrographs",
        "images": found["n"],
        "accuracy": found["accuracy"],
        "accuracy 95 %": None,
        "good lost": found["false_negative_rate"],
        "good lost 95 %": None,
        "junk let through": found["false_positive_rate"],
        "AUROC": found["auroc"],
    }
    return [row], ["empiar: 20 epochs, default settings"]


def numbers(
    case: str, keep: np.ndarray, score: np.ndarray, threshold: float, groups: np.ndarray
) -> Row:
    """A row of the table: rates of the forced decision, and how far they may be off."""
    judged = score >= np.float32(threshold)
    names, members = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(_DRAWS):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        w = weight[members]
        good = w * keep
        draws.append((np.average(judged == keep, weights=w), np.average(~judged, weights=good)))
    (a, b), (c, d) = np.quantile(draws, (0.025, 0.975), axis=0).T
    return {
        "case": case,
        "images": len(keep),
        "accuracy": float(np.mean(judged == keep)),
        "accuracy 95 %": f"{a:.3f} to {b:.3f}",
        "good lost": float(np.mean(~judged[keep])),
        "good lost 95 %": f"{c:.3f} to {d:.3f}",
        "junk let through": float(np.mean(judged[~keep])),
        "AUROC": auroc(keep.astype(int), score),
    }


CASES: dict[str, Callable[[], tuple[list[Row], list[str]]]] = {"unseen": unseen, "empiar": empiar}

if __name__ == "__main__":
    main(measure)
