"""The page of particles that became a map: what it took, and what a person decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoray import report
from cryoray.settings import ClassifySettings, WorkflowSettings

#: What a person is asked, in order: each of them is one decision.
ASKED = ("2D classes", "particles", "3D classes")
#: Particles to which the times are extrapolated.
MANY = 100_000
#: Stages whose work does not grow with particles: batches of a chosen size, and maps.
_FIXED = ("initial", "mask", "postprocess")
#: Seconds.
_WORKING_DAY = 8 * 3600


def extrapolated(stage: Mapping[str, Any], total: int) -> float | None:
    """Seconds of a stage with `MANY` particles, if its time is in proportion to particles.

    What a stage takes for starting is multiplied too, so with the same box, options and machine it is
    too much rather than too little. An initial model takes the same: RELION makes it of batches of a
    chosen size; so do mask and postprocess, which see maps. The particles of a stage keep their share
    of all.

    Args:
        stage: as the report has it.
        total: particles of the run.
    """
    seconds = stage["seconds"]
    if seconds is None or stage["stage"] in _FIXED:
        return seconds
    return float(seconds) * MANY / total


def looks(arm: Mapping[str, Any]) -> int:
    """Images that a person decides on with `MANY` particles.

    Particles are multiplied; classes stay as many, since their number is chosen, not found.

    Args:
        arm: as `arms` has it.
    """
    asked = arm["decisions"]
    particles = asked["particles"] * MANY / arm["particles"]
    return round(particles) + sum(asked[what] for what in ASKED if what != "particles")


@dataclass(frozen=True, slots=True)
class WorkflowPage:
    """Page about particles that became a map, with cryoray and without.

    Attributes:
        project: RELION's folder.
        particles: the STAR file that was given.
        total: particles in it.
        diameter: of the mask, Å.
        version: of RELION.
    """

    project: Path
    particles: Path
    total: int
    diameter: float
    version: tuple[int, ...]

    def write(
        self,
        path: Path,
        arms: Mapping[str, Mapping[str, Any]],
        chosen: WorkflowSettings,
        classify: ClassifySettings,
    ) -> Path:
        """Write the page.

        Args:
            path: of the page.
            arms: what was written of each, ``with`` and ``without``.
            chosen: the settings in force.
            classify: those of the ensembles.
        """
        title = f"Particles to map: {self.project.name}"
        return report.render(path, title, _sections(arms, self, chosen, classify))


def _sections(
    arms: Mapping[str, Mapping[str, Any]],
    workflow: WorkflowPage,
    chosen: WorkflowSettings,
    classify: ClassifySettings,
) -> list[report.Section]:
    version = ".".join(map(str, workflow.version))
    stages, sums, people, later = [], [], [], []
    for name, arm in arms.items():
        total, asked = int(arm["particles"]), arm["decisions"]
        stages += [
            (
                f"{stage['stage']}, {name} cryoray",
                str(stage["job"]),
                f"{stage['particles']:,}",
                _time(stage["seconds"]),
                _time(extrapolated(stage, total)),
            )
            for stage in arm["stages"]
        ]
        known = [stage for stage in arm["stages"] if stage["seconds"] is not None]
        fixed = sum(stage["seconds"] for stage in known if stage["stage"] in _FIXED)
        spent = sum(stage["seconds"] for stage in known)
        many = (spent - fixed) * MANY / total + fixed
        sums.append(
            (
                f"{name} cryoray",
                f"{arm['resolution']:.2f}",
                _time(spent),
                _time(many),
                f"{spent - fixed:.0f} s × {MANY:,} / {total:,} + {fixed:.0f} s",
            )
        )
        people.append(
            (
                f"{name} cryoray",
                *(f"{asked[what]:,}" for what in ASKED),
                f"{sum(asked.values()):,}",
                f"{looks(arm):,}",
            )
        )
        person = looks(arm) * chosen.seconds_per_image
        later.append(
            (
                f"{name} cryoray",
                _time(many),
                _time(person),
                f"{looks(arm):,} × {chosen.seconds_per_image:g} s",
                f"{person / _WORKING_DAY:.1f}",
            )
        )
    scaled = f"{MANY:,} particles"
    notes = [
        f"{name} cryoray, {note}" for name, arm in arms.items() for note in arm.get("notes", ())
    ]
    return [
        report.summary_section(
            f"{workflow.total:,} particles became a map in RELION {version}, in {workflow.project}: open"
            " that folder in RELION's window to look at any job, or to go on by hand.",
            {"particles": workflow.particles, "diameter": f"{workflow.diameter:g} Å"},
            {
                "processes and threads": f"{chosen.mpi} × {chosen.threads}",
                "GPU": chosen.gpu or "none",
            },
            {f"Å {name} cryoray": f"{arm['resolution']:.2f}" for name, arm in arms.items()},
        ),
        report.table_section(
            "What it took",
            ("", "resolution, Å", "time", scaled, "arithmetic"),
            sums,
            "Computing time only. Without cryoray nobody selected anything: that arm took every particle"
            " and class. What both arms share was run once and counts in both.",
        ),
        report.table_section(
            "What a person decides",
            ("", *ASKED, "together", scaled),
            people,
            "Counted in the jobs. Without cryoray: every class that has particles, and every particle,"
            " which people leave to its class instead. With it: what the ensembles are in doubt about (their"
            " review band); their threshold decided there too, so none of it had to be looked at. For more"
            " particles, particles are multiplied and classes are as many.",
        ),
        report.table_section(
            f"Computing and looking, {MANY:,} particles",
            ("", "computing", "looking", "arithmetic", "working days of 8 h"),
            later,
            f"{chosen.seconds_per_image:g} s for one image is assumed, not measured"
            " (workflow.seconds_per_image).",
        ),
        report.table_section(
            "Stages",
            ("stage", "job", "particles", "time", scaled),
            stages,
            f"Extrapolated in proportion to particles: time × {MANY:,} / particles of the run, same box,"
            " options and machine; initial sees batches of a chosen size, mask and postprocess see maps,"
            " so they take the same. What a stage takes to start is"
            " multiplied, too, most of all in the stages named select, so it is too much.",
            " ".join(f"{note[0].upper()}{note[1:].removesuffix('.')}." for note in notes),
        ),
        report.provenance_section(report.command(), [chosen, classify]),
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
