"""What does a project's own profile buy? Unseen projects judged with it and without.

``python -m benchmarks.accuracy.context [ENSEMBLE…]`` compares ensembles, by default the one that ships, at
their own thresholds, with nothing left to a person, on

- simulated projects of a seed and of settings that no training has: single images, and picks of whole
  micrographs in all their versions; labels are true,
- 2,374 raw particles of EMPIAR-10204, where ``shared/data`` lies beside the project; pseudo-labels, by the 2D
  class: a check of the ranking, never a headline.

``CRYORAY_BENCH_FOLDER`` names a folder that is kept, so that projects are not simulated again.
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accuracy.particles import numbers
from benchmarks.common import Row, main, result
from cryoray.engine.local import judge_plans
from cryoray.formats.source import Source, open_source
from cryoray.metrics.accuracy import auroc
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_source
from cryoray.models.registry import shipped
from cryoray.preparation.plan import plan
from cryoray.records import Verdicts, ignore
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate
from cryoray.simulation.junk import KINDS, PARTICLE

_REAL = Path(__file__).parents[3] / "shared/data"
#: Of single images, and of picks.
PROJECTS, IMAGES, SEED = 20, 200, 771_000
_VERSIONS = ("raw", "denoised", "low-passed", "8-bit", "masked", "binned")


class Project(NamedTuple):
    """Images with labels.

    Attributes:
        sort: what it is listed under.
        source: of the images.
        keep: int8 [n], -1 where nobody knows.
        kind: object [n], what each image is, '' where only the label is known.
    """

    sort: str
    source: Source
    keep: np.ndarray
    kind: np.ndarray


def measure() -> dict[str, Any]:
    """Rows for each ensemble and sort of project, with profile and without."""
    given = [Path(name) for name in sys.argv[1:]] if __name__ == "__main__" else []
    folders = given or [folder for folder in [shipped("particle")] if folder is not None]
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(os.environ.get("CRYORAY_BENCH_FOLDER") or temporary)
        projects = [*simulated(kept), *empiar10204()]
        for folder in folders:
            made, said = compared(Ensemble.load(folder), projects)
            rows += made
            notes += said
    question = "What does a project's own profile buy on projects that nobody has seen?"
    return result(question, rows, ratios=(), notes=notes)


def settings() -> list[SimulateSettings]:
    """Of the simulated projects: first single images, then picks, raw every second one."""
    made = []
    for number in range(2 * PROJECTS):
        rng, picked = np.random.default_rng((SEED, number)), number >= PROJECTS
        box = int(rng.choice([112, 144] if picked else [88, 112, 144]))
        snr = float(np.exp(rng.uniform(*np.log([0.03, 0.6])))) * 128 / box
        few = int(rng.choice([20, 70]))
        version = _VERSIONS[0 if number % 2 else (number // 2) % 6]
        made.append(
            SimulateSettings(
                projects=1,
                first=number + 1,
                images=IMAGES,
                per_micrograph=few,
                box=box,
                snr=round(snr, 4),
                seed=SEED,
                human_error=0.0,
                **(
                    {"micrographs": True, "written": False, "version": version}
                    if picked
                    else {"junk": round(float(rng.uniform(0.1, 0.8)), 3)}
                ),
            )
        )
    return made


def simulated(kept: Path) -> list[Project]:
    """Projects of a seed of their own."""
    made = []
    for chosen in settings():
        (folder,) = simulate(kept / f"{chosen.first:03d}", Settings(simulate=chosen))
        kind = np.array([row["kind"] for row in read_truth(folder)], object)
        sort = "simulated, picked" if chosen.micrographs else "simulated, single images"
        source = open_source(folder / "particles.star", "particle")
        made.append(Project(sort, source, (kind == PARTICLE).astype(np.int8), kind))
    return made


def empiar10204() -> list[Project]:
    """Raw particles of EMPIAR-10204 with the pseudo-labels of their 2D classes."""
    file = _REAL / "particles-empiar10204-labels/labels.csv"
    stars = sorted((_REAL / "relion5-project/Extract").glob("*/particles.star"))
    if not file.is_file() or not stars:
        return []
    source = open_source(stars[0], "particle")
    with file.open(encoding="utf-8") as opened:
        label = {row["image"]: row["label"] for row in csv.DictReader(opened)}
    keep = np.array([{"1": 1, "0": 0}.get(label.get(i, ""), -1) for i in source.images], np.int8)
    kind = np.full(len(keep), "", object)
    return [Project("EMPIAR-10204, pseudo-labels", source, keep, kind)]


def compared(ensemble: Ensemble, projects: list[Project]) -> tuple[list[Row], list[str]]:
    """Rows of one ensemble, and what it finds of each kind of junk."""
    rows: list[Row] = []
    notes: list[str] = []
    ways = ("without", "profile") if ensemble.takes_profile else ("without",)
    for way in ways:
        judged = [_judged(project, ensemble, way) for project in projects]
        if way == "profile":
            far = [
                f"{p.sort} ({p.source.path.parent.name})"
                for p, said in zip(projects, judged, strict=True)
                if said.about.get("unfamiliar")
            ]
            notes.append(f"{len(far)} of {len(projects)} profiles unfamiliar: {', '.join(far)}")
        for sort in dict.fromkeys(project.sort for project in projects):
            here = [i for i, project in enumerate(projects) if project.sort == sort]
            known = [projects[i].keep[judged[i].rows] >= 0 for i in here]
            score, line, keep, kind, group = (
                np.concatenate([each[k] for each, k in zip(column, known, strict=True)])
                for column in (
                    [judged[i].score for i in here],
                    [_line(judged[i]) for i in here],
                    [projects[i].keep[judged[i].rows] == 1 for i in here],
                    [projects[i].kind[judged[i].rows] for i in here],
                    [np.full(len(judged[i].rows), i) for i in here],
                )
            )
            row = numbers(sort, keep, score, line, group)
            each = [
                auroc(keep[group == g].astype(int), score[group == g])
                for g in np.unique(group)
                if 0 < keep[group == g].sum() < (group == g).sum()
            ]
            lost = [np.mean((score < line)[keep & (group == g)]) for g in np.unique(group[keep])]
            more = {
                "AUROC within": float(np.mean(each)),
                "lost, mean of projects": float(np.mean(lost)),
                "projects": len(here),
            }
            rows.append({"ensemble": ensemble.digest[:8], "judged": way, **row, **more})
            found = [
                f"{name} {np.mean((score < line)[kind == name]):.0%}"
                for name in KINDS
                if (kind == name).any()
            ]
            if found:
                notes.append(f"{ensemble.digest[:8]} {way}, {sort}, found: {', '.join(found)}")
    return rows, notes


def _judged(project: Project, ensemble: Ensemble, way: str) -> Verdicts:
    if way == "profile":
        return judge_source(project.source, ensemble)
    planned = plan(project.source, ensemble.preparation, 64)
    (judged,) = judge_plans([planned], ensemble, 64, ignore)
    return judged


def _line(judged: Verdicts) -> np.ndarray:
    return np.full(len(judged.rows), np.float32(judged.about["threshold"]))


if __name__ == "__main__":
    main(measure)
