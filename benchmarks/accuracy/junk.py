"""What does junk cost the map, and what of that does cryoray win back? RELION's auto-refine decides.

One simulated project: always the same good particles, and junk of seven kinds in equal parts added until it
is 0, 20, 40 or 60 % of all. Each mixture is refined by ``relion_refine`` from scratch, poses and all, once
whole and once as the particle ensemble that ships leaves it, with nobody asked: what scores at least its
threshold. It begins from the true map at 30 Å, and particles keep their half of the data in every
refinement. A resolution is where the FSC falls below 0.143 between the halves (inside a mask of the true map,
corrected for it), and below 0.5 with the true map, onto which the map was turned.

``CRYORAY_BENCH_FOLDER`` names a folder that is kept: refinements that are done are not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import affine_transform
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from benchmarks.common import RESULTS, Row, command, main, result
from cryoray import report
from cryoray.formats.files import replacing
from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume, write_volume
from cryoray.maps import fsc
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_source
from cryoray.models.registry import shipped
from cryoray.recipes.relion_jobs import without_poses
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate
from cryoray.simulation.junk import PARTICLE

GOOD, SHARES, ARMS = 300, (0.0, 0.2, 0.4, 0.6), ("without", "with")
PROJECT = SimulateSettings(
    projects=1, images=900, box=48, pixel_size=4.0, snr=0.3, junk=0.6, human_error=0.0, seed=11
)
#: Å, to which the true map is filtered that a refinement begins from.
START = 30.0
_REFINE = (
    *("--auto_refine", "--split_random_halves", "--firstiter_cc", "--ini_high", f"{START:g}"),
    *("--low_resol_join_halves", f"{START:g}", "--ctf", "--flatten_solvent", "--zero_mask"),
    *("--norm", "--scale", "--healpix_order", "1", "--auto_local_healpix_order", "2"),
    *("--offset_range", "4", "--offset_step", "2", "--oversampling", "1", "--pad", "1"),
    *("--maxsig", "50", "--skip_gridding"),
    *("--pool", "30", "--preread_images", "--dont_combine_weights_via_disc", "--j", "1"),
    *("--random_seed", "1"),
)


def measure() -> dict[str, Any]:
    """A row for each share of junk and arm; the figure lies beside the results."""
    if shutil.which("relion_refine_mpi") is None:
        raise SystemExit("RELION is not on the PATH: apt-get install relion")
    kept = os.environ.get("CRYORAY_BENCH_FOLDER")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept or temporary)
        rows = [refined(folder, share, arm) for share in SHARES for arm in ARMS]
    with replacing(RESULTS / "junk.png") as made:
        made.write_bytes(figure(rows))
    return result(
        f"Resolution of the map of {GOOD} good particles with junk among them, with and without cryoray",
        rows,
        ratios=(),
        notes=[
            f"box {PROJECT.box} px of {PROJECT.pixel_size:g} Å: shells at {PROJECT.box * 4.0:g} Å / n",
            "seconds are of relion_refine on two processes that work; judging is not in them",
        ],
    )


def pool(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """The project that mixtures are drawn from.

    Returns:
        its folder; object [n], what each image is; bool [n], whether the ensemble would keep it.
    """
    (project,) = simulate(folder / "pool", Settings(simulate=PROJECT))
    kind = np.array([line["kind"] for line in read_truth(project)], object)
    told = project / "kept.json"
    if not told.is_file():
        judge = shipped("particle")
        if judge is None:
            raise RuntimeError("no particle ensemble ships with this checkout")
        ensemble = Ensemble.load(judge)
        judged = judge_source(open_source(project / "particles.star"), ensemble)
        kept = np.zeros(len(kind), bool)
        kept[judged.rows] = judged.score >= np.float32(judged.about["threshold"])
        told.write_text(json.dumps(kept.tolist()))
    return project, kind, np.array(json.loads(told.read_text()))


def mixture(kind: np.ndarray, share: float) -> np.ndarray:
    """int64, sorted: rows of the good and of junk that is this share of all; less junk is part of more."""
    rng = np.random.default_rng(0)
    good = np.flatnonzero(kind == PARTICLE)
    bad = rng.permutation(np.flatnonzero(kind != PARTICLE))
    count = round(GOOD * share / (1 - share))
    if len(good) < GOOD or len(bad) < count:
        raise RuntimeError("the simulated project has too few images of a sort")
    return np.sort(np.concatenate([good[:GOOD], bad[:count]]))


def refined(folder: Path, share: float, arm: str) -> Row:
    """One refinement and its resolutions."""
    out = folder / f"junk-{100 * share:.0f}-{arm}"
    book = out / "row.json"
    if not book.is_file():
        project, kind, kept = pool(folder)
        rows = mixture(kind, share)
        if arm == "with":
            rows = rows[kept[rows]]
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        without_poses(out / "particles.star", project / "particles.star", rows)
        truth, pixel_size = read_volume(project / "truth.mrc")
        pixel_size = pixel_size or 4.0
        start = fsc.low_passed(torch.from_numpy(truth), pixel_size, START).numpy()
        write_volume(out / "start.mrc", start, pixel_size)
        seconds = _refine(project, out)
        good = int((kind[rows] == PARTICLE).sum())
        row = {
            "junk": f"{share:.0%}",
            "cryoray": arm,
            "good": good,
            "junk left": len(rows) - good,
            **_resolutions(out, torch.from_numpy(truth), pixel_size),
            "seconds": round(seconds, 1),
        }
        with replacing(book) as temporary:
            temporary.write_text(json.dumps(row))
    return dict(json.loads(book.read_text()))


def _refine(project: Path, out: Path) -> float:
    diameter = 0.8 * PROJECT.box * (PROJECT.pixel_size or 1.0)
    words = ["mpirun", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    words += ["-n", "3", "relion_refine_mpi", "--i", str(out / "particles.star"), "--o"]
    words += [str(out / "run"), "--ref", str(out / "start.mrc"), *_REFINE]
    begun = time.perf_counter()
    command(*words, "--particle_diameter", f"{diameter:g}", cwd=project)
    return time.perf_counter() - begun


def _resolutions(out: Path, truth: torch.Tensor, pixel_size: float) -> Row:
    halves = [
        torch.from_numpy(read_volume(out / f"run_half{n}_class001_unfil.mrc")[0]) for n in (1, 2)
    ]
    mask, _ = fsc.automatic_mask(truth, pixel_size)
    turned = _turn((halves[0] + halves[1]) / 2, truth, mask, pixel_size)
    write_volume(out / "turned.mrc", turned.numpy(), pixel_size)
    between = fsc.half_map_fsc(halves[0], halves[1], pixel_size, mask)
    curve = fsc.correlation(turned * mask, truth * mask)
    frequency = fsc.frequencies(len(truth), pixel_size)
    return {
        "halves, Å": between.resolution().interpolated,
        "truth, Å": fsc.resolution(frequency, curve, 0.5).interpolated,
        "FSC with truth": float(curve[1 : len(truth) // 4 + 1].mean()),
    }


def _turn(
    volume: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, pixel_size: float
) -> torch.Tensor:
    """The map turned and moved onto the true one: a refinement drifts as a whole."""
    seen = fsc.low_passed(volume, pixel_size, 15.0).numpy()
    wanted = (fsc.low_passed(truth, pixel_size, 15.0) * mask).numpy()
    weight, centre = mask.numpy(), np.full(3, len(truth) // 2)

    def moved(given: np.ndarray, pose: np.ndarray, order: int) -> np.ndarray:
        turn = Rotation.from_rotvec(pose[:3], degrees=True).as_matrix()
        return np.asarray(
            affine_transform(given, turn, centre - turn @ centre + pose[3:], order=order)
        )

    def unlike(pose: np.ndarray) -> float:
        return -float(np.corrcoef((moved(seen, pose, 1) * weight).ravel(), wanted.ravel())[0, 1])

    steps = np.diag([5.0, 5, 5, 1, 1, 1])
    simplex = np.concatenate([np.zeros((1, 6)), steps])
    best = minimize(unlike, np.zeros(6), method="Nelder-Mead", options={"initial_simplex": simplex})
    return torch.from_numpy(moved(volume.numpy(), best.x, 3))


def figure(rows: list[Row]) -> bytes:
    """PNG: resolution over the share of junk, both arms, against the true map and between halves."""
    lines = []
    for column, style in (("truth, Å", "-"), ("halves, Å", "--")):
        for arm, colour in (("without", "discard"), ("with", "keep")):
            mine = [row for row in rows if row["cryoray"] == arm and row[column] is not None]
            share = np.array([float(row["junk"].rstrip("%")) for row in mine])
            height = np.array([row[column] for row in mine])
            label = f"{arm} cryoray, {column.split(',')[0]}"
            lines.append(report.Line(label, share, height, colour, style))
    drawing = report.against(lines, "junk", "junk among the particles, %", "resolution, Å")
    return drawing.png(150)


if __name__ == "__main__":
    main(measure)
