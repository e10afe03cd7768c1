"""How accurate are ensembles on what they have not seen?

``python -m benchmarks.accuracy.particles [CASE…]`` with the cases

unseen    the particle ensemble that ships, on simulated structures that it was not trained on: raw noise,
          signal-to-noise ratio 0.05 at 256 px and 1 to 1.5 Å/px, 40 % junk in seven kinds in equal parts
adapted   the same ensemble on such structures, set right for each by `cryoray adapt` from no labels, from 20
          and from 200; judged on the other images
empiar    five folds over the micrographs of EMPIAR-10017, trained anew each; needs ``shared/data`` beside
          the project, and an hour

2D classes of proteins never seen are measured by ``accuracy.class2d``, RELION's own 2D and 3D classes by
``accuracy.relion_classes``, and seeds, and what boosting buys, by ``accuracy.boosting``.

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
from cryoray.metrics.accuracy import auroc
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_source
from cryoray.models.registry import shipped
from cryoray.settings import Settings, SimulateSettings, load
from cryoray.simulation import read_truth, simulate
from cryoray.simulation.junk import KINDS, PARTICLE
from cryoray.verbs.adapt import adapt
from cryoray.verbs.cross_validate import cross_validate
from cryoray.verbs.ingest import ingest

_REAL = Path(__file__).parents[3] / "shared/data/particles-empiar10017"
#: Structures and images of each; seed and number make a structure, and training has other seeds.
STRUCTURES, IMAGES, SEED = 12, 200, 990_000
#: For adaptation: structures, images of each, and how many are labelled.
_NEW, _MORE, _LABELS = 6, 600, (0, 20, 200)
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
    scores, kinds, groups, lines = [], [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(STRUCTURES):
            chosen = Settings(simulate=_unseen(number))
            (project,) = simulate(Path(temporary) / str(number), chosen)
            score, kind, threshold = judged(project, ensemble)
            scores.append(score)
            kinds.append(kind)
            groups.append(np.full(len(score), number))
            lines.append(np.full(len(score), threshold, np.float32))
    kind = np.concatenate(kinds)
    row = numbers(
        "simulated raw noise, unseen structures",
        kind == PARTICLE,
        np.concatenate(scores),
        np.concatenate(lines),
        np.concatenate(groups),
    )
    found = np.concatenate(scores) < np.concatenate(lines)
    recall = ", ".join(f"{name} {found[kind == name].mean():.0%}" for name in KINDS)
    return [row], [f"unseen: junk found by kind: {recall}"]


def _unseen(number: int, images: int = IMAGES) -> SimulateSettings:
    """Raw noise as the goal states it."""
    pixel_size = round(float(np.random.default_rng((SEED, number)).uniform(1.0, 1.5)), 3)
    return SimulateSettings(
        projects=1,
        first=number + 1,
        images=images,
        per_micrograph=50,
        box=256,
        pixel_size=pixel_size,
        snr=0.05,
        junk=0.4,
        human_error=0.0,
        seed=SEED,
    )


def adapted() -> tuple[list[Row], list[str]]:
    """The ensemble that ships, before and after `cryoray adapt`, on the images that nobody labelled."""
    folder = shipped("particle")
    if folder is None:
        return [], ["adapted: no particle ensemble ships with this checkout"]
    before = Ensemble.load(folder)
    settings = load(ingest={"preparation": before.preparation.model_dump()})
    keep, group = [], []
    scores: dict[int | None, list[np.ndarray]] = {}
    thresholds: dict[int | None, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(_NEW):
            here = Path(temporary) / str(number)
            chosen = _unseen(STRUCTURES + number, _MORE)
            (project,) = simulate(here / "project", Settings(simulate=chosen))
            order = np.random.default_rng((SEED, number)).permutation(_MORE)
            source = project / "particles.star"
            prepared = ingest([source], here / "set", settings)
            true = np.array([row["keep"] == "1" for row in read_truth(project)])
            rest = np.sort(order[max(_LABELS) :])
            for count in (None, *_LABELS):
                ensemble = before
                if count is not None:
                    labels = None
                    if count:
                        labels = project / f"{count}.csv"
                        _write_labels(labels, project, order[:count])
                    out = here / f"adapted-{count}"
                    adapt(folder, prepared, out, settings, labels=labels)
                    ensemble = Ensemble.load(out)
                score, _, threshold = judged(project, ensemble)
                scores.setdefault(count, []).append(score[rest])
                limits = np.full(len(rest), threshold, np.float32)
                thresholds.setdefault(count, []).append(limits)
            keep.append(true[rest])
            group.append(np.full(len(rest), number))
    rows = [
        numbers(
            "as it ships" if count is None else f"adapted, {count} labels",
            np.concatenate(keep),
            np.concatenate(scores[count]),
            np.concatenate(thresholds[count]),
            np.concatenate(group),
        )
        for count in scores
    ]
    return rows, [f"adapted: {_NEW} structures of {_MORE} images, {_MORE - max(_LABELS)} judged"]


def _write_labels(out: Path, project: Path, rows: np.ndarray) -> None:
    """Those of a person who makes no mistakes."""
    lines = ["stack,index,selected"]
    truth = read_truth(project)
    lines += [f"{truth[r]['stack']},{truth[r]['index']},{truth[r]['keep']}" for r in rows.tolist()]
    out.write_text("\n".join(lines) + "\n")


def judged(project: Path, ensemble: Ensemble) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores, float32 [n], and what is true, object [n], of a project's images, in order; the threshold.

    The project is judged by its own profile, where the ensemble can.
    """
    said = judge_source(open_source(project / "particles.star", "particle"), ensemble)
    if said.quarantined:
        raise RuntimeError(f"simulated images were quarantined: {said.quarantined[0]}")
    kind = np.array([row["kind"] for row in read_truth(project)], object)
    return said.score, kind, float(said.about["threshold"])


def empiar() -> tuple[list[Row], list[str]]:
    """Five folds over the micrographs of EMPIAR-10017, each judged at its own ensemble's threshold."""
    if not _REAL.is_dir():
        return [], ["empiar: shared/data/particles-empiar10017 is not beside the project"]
    settings = load(train={"fit": {"epochs": 20}}, cross_validate={"folds": 5})
    with tempfile.TemporaryDirectory() as temporary:
        prepared = ingest([_REAL], Path(temporary) / "set", settings)
        found = cross_validate([prepared], Path(temporary) / "cv", settings)
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
    case: str,
    keep: np.ndarray,
    score: np.ndarray,
    threshold: float | np.ndarray,
    groups: np.ndarray,
) -> Row:
    """A row of the table: rates of the forced decision, and how far they may be off."""
    judged = score >= np.asarray(threshold, np.float32)
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


CASES: dict[str, Callable[[], tuple[list[Row], list[str]]]] = {
    "unseen": unseen,
    "adapted": adapted,
    "empiar": empiar,
}

if __name__ == "__main__":
    main(measure)
