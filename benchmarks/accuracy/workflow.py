"""From particles to a map with and without cryoray: time of each stage, and what a person would decide.

One simulated collection of about 600 particles in a small box, 40 % of them junk, goes through RELION's
stages twice in one project: with cryoray's choices among them, and without, on every particle and class.
Options are small enough for two cores: fewer iterations, coarser angles than RELION's defaults. What is kept
is extracted again from the simulated micrographs, centred, in the box that it had. Needs RELION.

``CRYORAY_BENCH_FOLDER`` names a folder that is kept: jobs that are done are not done again, and their times
are those of their own files. Its ``project-01`` is a RELION project with the report's page in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Row, main, result
from cryoray.formats.source import open_source
from cryoray.integrations.relion import version
from cryoray.report.workflow import ASKED, MANY, extrapolated, looks
from cryoray.settings import Settings, SimulateSettings, WorkflowSettings
from cryoray.simulation import MICROGRAPHS, read_truth, simulate
from cryoray.verbs.single_particle import FOLDER, Workflow, arms

PROJECT = SimulateSettings(
    projects=1,
    images=600,
    micrographs=True,
    box=48,
    pixel_size=4.0,
    snr=0.3,
    junk=0.4,
    human_error=0.0,
    seed=21,
)
_COARSE = {"sampling": "30 degrees", "offset_range": "4", "offset_step": "2", "do_pad1": "Yes"}
#: What makes an initial model quick: RELION 4 and 5 know none of the options of 3.1, and drop them.
_INITIAL_OF_3 = {
    **_COARSE,
    "sgd_ini_iter": "20",
    "sgd_inbetween_iter": "40",
    "sgd_fin_iter": "15",
    "sgd_ini_subset_size": "50",
    "sgd_fin_subset_size": "150",
    "sgd_write_iter": "75",
    "sgd_ini_resol": "50",
    "sgd_fin_resol": "30",
}
_INITIAL = {"nr_iter": "75"}
CHOSEN = WorkflowSettings(
    classes_2d=12,
    iterations_2d=12,
    classes_3d=2,
    iterations_3d=6,
    initial_resolution=40,
    threads=2,
    options={
        "class2d": {"psi_sampling": "10", "offset_range": "4", "offset_step": "2"},
        "class3d": {**_COARSE, "sampling": "15 degrees"},
        "refine": {
            **_COARSE,
            "sampling": "15 degrees",
            "auto_local_sampling": "7.5 degrees",
            "auto_faster": "Yes",
            "nr_threads": "1",
        },
    },
)


def measure() -> dict[str, Any]:
    """A row for each stage of each arm."""
    if shutil.which("relion_pipeliner") is None:
        raise SystemExit("RELION is not on the PATH: apt-get install relion")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("CRYORAY_BENCH_FOLDER") or temporary)
        for judge in (True, False):
            workflow(folder, judge).go()
        project = folder / "project-01"
        told = arms(project / FOLDER)
        truth = read_truth(project)
        good = {row["image"] for row in truth if row["keep"] == "1"}
        (selected,) = (s["job"] for s in told["with"]["stages"] if s["stage"] == "select2d")
        kept = open_source(project / selected / "particles.star").images
    rows: list[Row] = [
        {
            "stage": f"{stage['stage']}, {name} cryoray",
            "particles": stage["particles"],
            "seconds": stage["seconds"],
            f"{MANY:,} particles, h": (extrapolated(stage, arm["particles"]) or 0.0) / 3600,
        }
        for name, arm in told.items()
        for stage in arm["stages"]
    ]
    notes = [
        f"{len(truth)} particles, {len(good)} of them good",
        f"select2d kept {len(kept)} particles, {sum(image in good for image in kept)} of them good",
    ]
    for name, arm in told.items():
        asked = ", ".join(f"{arm['decisions'][what]:,} {what}" for what in ASKED)
        spent = sum(stage["seconds"] or 0.0 for stage in arm["stages"])
        notes.append(
            f"{name} cryoray: {spent:.0f} s, {arm['resolution']:.1f} Å; a person would decide on {asked};"
            f" with {MANY:,} particles on {looks(arm):,} images"
        )
    return result(
        "What does each stage take from particles to a map, with and without cryoray?",
        rows,
        ratios=(),
        notes=notes,
    )


def workflow(folder: Path, judge: bool) -> Workflow:
    """The stages of an arm, on the collection in a folder."""
    (project,) = simulate(folder, Settings(simulate=PROJECT))
    initial = _INITIAL_OF_3 if version() < (4,) else _INITIAL
    changed = {
        "judge": judge,
        "micrographs": project / MICROGRAPHS,
        "options": {**CHOSEN.options, "initial": initial},
    }
    chosen = CHOSEN.model_copy(update=changed)
    return Workflow(project / "particles.star", Settings(workflow=chosen))


if __name__ == "__main__":
    main(measure)
