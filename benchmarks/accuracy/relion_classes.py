"""Are the classes that RELION really makes judged right? Class2D and Class3D jobs of simulated collections.

Each job is of another random structure that no ensemble was trained on, classified by ``relion_refine``
itself, so that truth is known by counting: what each particle is, and into which class RELION put it. A 2D
class is good if most of its particles are. Of 3D classes the right one is that whose map agrees best with
the true map, from which, at 40 Å, RELION began; good particles are lost where their class is discarded. The
ensemble that ships judges at its own threshold, with nobody asked. Needs RELION, and an hour for all jobs.

``CRYORAY_BENCH_JOBS`` says how many of each, at most; ``CRYORAY_BENCH_FOLDER`` names a folder that is kept:
jobs that are done are not done again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Row, main, result
from cryoray.formats.class_selection import model_of
from cryoray.formats.class_volumes import open_volumes
from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume, write_volume
from cryoray.maps import fsc
from cryoray.metrics.accuracy import auroc
from cryoray.models.class_verdicts import judge_classes
from cryoray.models.class_volumes import judge_volumes
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import shipped
from cryoray.recipes.relion_jobs import OPTIONS_2D, counted, refine, there_is_relion
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate

#: Jobs and particles of each.
JOBS = {"class2d": (8, 600), "class3d": (30, 300)}
SEED = 770_000
#: Å, to which the true map is filtered that a 3D classification begins from.
START = 40.0
_COMMON = ("--offset_range", "4", "--j", "2", "--random_seed", "1")
OPTIONS = {
    "class2d": ("--K", "12", "--iter", "12", *OPTIONS_2D),
    "class3d": (
        *("--K", "3", "--iter", "7", "--tau2_fudge", "4", "--healpix_order", "1"),
        *("--ini_high", f"{START:g}", "--skip_gridding"),
    ),
}


def measure() -> dict[str, Any]:
    """A row for each kind of class; notes say what was ranked first."""
    if not there_is_relion():
        raise SystemExit("RELION is not on the PATH: apt-get install relion")
    ensembles = {kind: Ensemble.load(_shipped(kind), review=False) for kind in JUDGES}
    rows: list[Row] = []
    notes = [
        f"each job is of another structure; threshold of {kind} {one.threshold:.3f}"
        for kind, one in ensembles.items()
    ]
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(os.environ.get("CRYORAY_BENCH_FOLDER") or temporary)
        for kind, judge in JUDGES.items():
            jobs = min(JOBS[kind][0], int(os.environ.get("CRYORAY_BENCH_JOBS") or JOBS[kind][0]))
            seen = [
                judge(kept / kind / f"{number:02d}", number, ensembles[kind])
                for number in range(jobs)
            ]
            rows.append(_row(kind, seen))
            firsts = np.array([(one.best[one.score.argmax()], one.most_good()) for one in seen])
            right, most = firsts.mean(0)
            notes.append(
                f"{kind}: of {jobs} jobs the class that ranks first is the best in {right:.0%}, and that with"
                f" most good particles in {most:.0%}"
            )
    return result(
        "Are the classes that RELION makes of simulated collections judged right?",
        rows,
        ratios=(),
        notes=notes,
    )


def _shipped(kind: str) -> Path:
    folder = shipped(kind)
    if folder is None:
        raise RuntimeError(f"no ensemble of kind {kind} ships with this checkout")
    return folder


class JobOutcome:
    """The classes of one job that have particles, and what was said of them.

    Attributes:
        score: float32 [n].
        keep: bool [n], what was decided.
        good, bad: int64 [n], particles of each sort.
        best: bool [n], the class that a person would want most.
    """

    def __init__(
        self, score: np.ndarray, keep: np.ndarray, good: np.ndarray, bad: np.ndarray, best: int
    ) -> None:
        self.score, self.keep, self.good, self.bad = score, keep, good, bad
        self.best = np.arange(len(score)) == best

    def most_good(self) -> bool:
        """Whether the class of highest score is the one with most good particles."""
        return bool(self.good.argmax() == self.score.argmax())


def class2d(folder: Path, number: int, ensemble: Ensemble) -> JobOutcome:
    """A job of 2D classes; the best of them is the largest good one."""
    data = _job(folder, number, "class2d")
    said = judge_classes(open_source(model_of(data), "class2d"), ensemble)
    good, bad = counted(data, data.parents[1])
    seen = np.isfinite(said.score) & (good + bad > 0)
    return JobOutcome(
        said.score[seen],
        said.verdict[seen] == "keep",
        good[seen],
        bad[seen],
        int(np.where(good > bad, good, 0)[seen].argmax()),
    )


def class3d(folder: Path, number: int, ensemble: Ensemble) -> JobOutcome:
    """A job of 3D classes; the best of them is that whose map is most like the true one."""
    data = _job(folder, number, "class3d")
    classes = open_volumes(data)
    said = judge_volumes(classes, ensemble)
    good, bad = counted(data, data.parents[1])
    truth = torch.from_numpy(read_volume(data.parents[1] / "truth.mrc")[0])
    mask, _ = fsc.automatic_mask(truth, _project("class3d", number).pixel_size or 1.0)
    like = []
    for row in said.rows.tolist():
        volume = torch.from_numpy(read_volume(classes.volumes[row])[0])
        curve = fsc.correlation(volume * mask, truth * mask)
        like.append(float(curve[1 : len(truth) // 4 + 1].mean()))
    judged = said.verdicts
    return JobOutcome(
        judged.score,
        judged.verdict == "keep",
        good[said.rows],
        bad[said.rows],
        int(np.argmax(like)),
    )


JUDGES: dict[str, Callable[[Path, int, Ensemble], JobOutcome]] = {
    "class2d": class2d,
    "class3d": class3d,
}


def _row(kind: str, seen: list[JobOutcome]) -> Row:
    score, keep, good, bad = (
        np.concatenate([getattr(one, name) for one in seen])
        for name in ("score", "keep", "good", "bad")
    )
    truly = good > bad
    each = [float(one.good[~one.keep].sum() / one.good.sum()) for one in seen]
    return {
        "classes": f"{kind}, RELION",
        "number": len(score),
        "good classes": int(truly.sum()),
        "AUROC": auroc(truly.astype(int), score),
        "accuracy": float((keep == truly).mean()),
        "good classes lost": float((~keep[truly]).mean()),
        "good particles lost": float(good[~keep].sum() / good.sum()),
        "at most 3 % lost, jobs": float(np.mean(np.array(each) <= 0.03)),
        "junk, before": float(bad.sum() / (good + bad).sum()),
        "junk, after": float(bad[keep].sum() / (good + bad)[keep].sum()),
    }


def _project(kind: str, number: int) -> SimulateSettings:
    return SimulateSettings(
        projects=1,
        first=number + 1,
        images=JOBS[kind][1],
        box=48,
        pixel_size=4.0,
        snr=round(float(np.random.default_rng((SEED, number)).uniform(0.1, 0.4)), 3),
        junk=0.3,
        human_error=0.0,
        seed=SEED + list(JOBS).index(kind),
    )


def _job(folder: Path, number: int, kind: str) -> Path:
    """The particles of a job, which lies in the folder of its project."""
    (project,) = simulate(folder, Settings(simulate=_project(kind, number)))
    out = project / kind
    iterations = int(OPTIONS[kind][OPTIONS[kind].index("--iter") + 1])
    data = out / f"run_it{iterations:03d}_data.star"
    if not data.is_file():
        words = ["--particle_diameter", f"{0.8 * 48 * 4:g}", *OPTIONS[kind], *_COMMON]
        if kind == "class3d":
            truth, pixel_size = read_volume(project / "truth.mrc")
            start = fsc.low_passed(torch.from_numpy(truth), pixel_size or 4.0, START)
            write_volume(project / "start.mrc", start.numpy(), pixel_size or 4.0)
            words += ["--ref", str(project / "start.mrc")]
        refine(out, project, np.arange(len(read_truth(project))), *words)
    return data


if __name__ == "__main__":
    main(measure)
