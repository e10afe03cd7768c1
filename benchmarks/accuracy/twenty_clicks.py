"""What twenty clicks are worth on simulated structures that no network has seen.

    python -m benchmarks.accuracy.twenty_clicks [--ensemble DIR] [--projects N] [--images N] [--work DIR]

Projects have seeds of their own, half of them with junk of all kinds in equal parts, half picked from whole
micrographs as pickers pick. The truth clicks: on images drawn at random, and on those that `to_label` asks
about; then the line moves as `adapt` moves it. Accuracy and good images lost are of forced decisions on all
images of a project, its labelled ones too, as their scores say. The constants of `boosting.adaptation` were
chosen on projects of other seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import main, result
from cryoray.boosting import adaptation, prevalence
from cryoray.boosting.calibration import Platt
from cryoray.boosting.voting import score
from cryoray.metrics.accuracy import auroc
from cryoray.models.adaptation import adapted
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import profile_set
from cryoray.models.registry import SHIPPED
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import (
    IngestSettings,
    OperatingPointSettings,
    PreparationSettings,
    Settings,
    SimulateSettings,
)
from cryoray.simulation import read_truth, simulate
from cryoray.simulation.junk import PARTICLE
from cryoray.verbs.ingest import ingest

#: Not those of the recipe, and not those on which constants were chosen.
SEED = 90210
CLICKS, DRAWS = 20, 5
#: Only where the start is below has a person reason to click.
GOOD = 0.9


def projects(count: int, images: int) -> Iterator[SimulateSettings]:
    """Settings of unseen projects, of all sorts of box and noise."""
    for number in range(count):
        rng = np.random.default_rng((SEED, number))
        picked = number % 2 == 1
        box = int(rng.choice((64, 80, 96)) if picked else rng.choice((72, 96, 128)))
        yield SimulateSettings(
            projects=1,
            first=number + 1,
            images=images,
            per_micrograph=50,
            box=box,
            snr=round(float(np.exp(rng.uniform(*np.log((0.05, 0.6))))) * 128 / box, 4),
            junk=round(float(rng.uniform(0.2, 0.6)), 3),
            micrographs=picked,
            written=False,
            seed=SEED,
        )


def prepared(settings: SimulateSettings, work: Path) -> tuple[PreparedSet, np.ndarray]:
    """A project's set, and the truth about each image, bool [n]."""
    out = work / f"{settings.first:03d}"
    if not out.exists():
        (folder,) = simulate(work / f"{settings.first:03d}-source", Settings(simulate=settings))
        chosen = IngestSettings(preparation=PreparationSettings(features=()))
        ingest([folder], out, Settings(ingest=chosen))
    folder = next((work / f"{settings.first:03d}-source").glob("*/truth.csv")).parent
    examples = PreparedSet.open(out)
    kind = {row["image"]: row["kind"] for row in read_truth(folder)}
    names = examples.table["image"].to_pylist()
    return examples, np.array([kind[name] == PARTICLE for name in names])


def judged(judge: Ensemble, examples: PreparedSet) -> tuple[Ensemble, np.ndarray]:
    """The judge within the project where it can be, and its scores, d3 asked everywhere, float32 [n]."""
    rows = np.arange(examples.n)
    if judge.takes_profile:
        judge = judge.with_profile(profile_set(examples, rows, judge))
    said = judge.logits(examples.images(rows), examples.feature_matrix(judge.features))
    p = [
        Platt(c.slope, c.offset)(logit)
        for c, logit in zip(judge.manifest.calibration, said.T, strict=True)
    ]
    return judge, score(*p)


def clicked(
    judge: Ensemble, plain: np.ndarray, keep: np.ndarray, known: np.ndarray
) -> tuple[float, float]:
    """Accuracy and share of good images lost when the truth has clicked on ``known``."""
    manifest = judge.manifest
    share = prevalence.estimate(plain, manifest.prevalence)
    change = adaptation.fit_change(plain[known], keep[known], share.shift)
    after = adapted(
        manifest, change, plain, known, keep[known], share.estimate, OperatingPointSettings()
    )
    return rates(change(plain).astype(np.float32), keep, after.threshold)


def rates(scores: np.ndarray, keep: np.ndarray, threshold: float) -> tuple[float, float]:
    """Accuracy, and share of good images lost."""
    judged_good = scores >= np.float32(threshold)
    return float(np.mean(judged_good == keep)), float(np.mean(~judged_good[keep]))


def measure(
    ensemble: Path | None = None, count: int = 16, images: int = 300, work: Path | None = None
) -> dict[str, Any]:
    """One row per project, and the means of those that start below `GOOD`."""
    judge = Ensemble.load(ensemble or SHIPPED / "particle")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, settings in enumerate(projects(count, images)):
            examples, keep = prepared(settings, work or Path(temporary))
            inside, plain = judged(judge, examples)
            asked = adaptation.to_label(plain, inside.threshold, CLICKS)
            draws = [
                np.random.default_rng((SEED, number, draw)).choice(
                    len(plain), CLICKS, replace=False
                )
                for draw in range(DRAWS)
            ]
            before = rates(plain, keep, inside.threshold)
            random = np.mean([clicked(inside, plain, keep, some) for some in draws], 0)
            chosen = clicked(inside, plain, keep, asked)
            rows.append(
                {
                    "project": f"{settings.first:02d} {'picked' if settings.micrographs else 'boxes'}",
                    "images": len(keep),
                    "keep": round(float(keep.mean()), 2),
                    "AUROC": round(float(auroc(keep, plain)), 3),
                    "accuracy before": round(100 * before[0], 1),
                    "random": round(100 * float(random[0]), 1),
                    "chosen": round(100 * chosen[0], 1),
                    "lost before": round(100 * before[1], 1),
                    "lost, random": round(100 * float(random[1]), 1),
                    "lost, chosen": round(100 * chosen[1], 1),
                }
            )
    for name, some in (
        ("mean", rows),
        (f"mean, start < {GOOD}", [row for row in rows if row["accuracy before"] < 100 * GOOD]),
    ):
        if some:
            keys = [key for key in some[0] if key not in ("project", "images")]
            means = {
                key: round(
                    float(np.mean([row[key] for row in some])), 3 if key in ("keep", "AUROC") else 1
                )
                for key in keys
            }
            rows.append({"project": name, "images": sum(row["images"] for row in some), **means})
    return result(
        f"What are {CLICKS} clicks worth on structures that no network has seen?",
        rows,
        ratios=(),
        notes=[
            "accuracy and good images lost in %, of forced decisions on all images of a project",
            f"random: mean of {DRAWS} draws; chosen: `boosting.adaptation.to_label`",
            f"ensemble {judge.digest[:12]}, policy {judge.policy}"
            f"{', each project by its profile' if judge.takes_profile else ''}; seed {SEED}",
        ],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ensemble", type=Path)
    parser.add_argument("--projects", type=int, default=16)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--work", type=Path, help="keep the projects there, and use them again")
    given = parser.parse_args()
    main(lambda: measure(given.ensemble, given.projects, given.images, given.work))
