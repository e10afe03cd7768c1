"""Particles to a refined map and its report, in RELION's own project and pipeline, as a flow.

python -m cryoray_flows.single_particle PARTICLES.star [--settings FILE.toml] [--arms with|without|both]
                                        [--micrographs FILE.star]

In a clone it is ``flows.single_particle``, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal, get_args

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.integrations.relion import Job
from cryoray.settings import Settings, load
from cryoray.verbs.single_particle import Workflow
from cryoray.verbs.single_particle import arms as found

from .command import command
from .reporter import key

Arms = Literal["with", "without", "both"]


@flow(name="single-particle", flow_run_name="map of {particles}")
def single_particle(
    particles: Path,
    overrides: dict[str, Any] | None = None,
    settings_file: Path | None = None,
    arms: Arms | None = None,
) -> Path:
    """Go through every stage; those done before are recognised and skipped.

    Args:
        particles: STAR file of extracted particles, in RELION's project folder.
        overrides: settings over those of file and environment, nested as in the TOML file.
        settings_file: the TOML file.
        arms: with cryoray, without it on every particle and class, or one after the other; None: as the
            setting ``workflow.judge`` says.

    Returns:
        the report's page: of both arms where both were run, now or before.
    """
    settings = load(settings_file, **(overrides or {}))
    given = {
        None: [settings.workflow.judge],
        "with": [True],
        "without": [False],
        "both": [True, False],
    }
    for judge in given[arms]:
        workflow = settings.workflow.model_copy(update={"judge": judge})
        page = _arm(particles, settings.model_copy(update={"workflow": workflow}))
    return page


def _arm(particles: Path, settings: Settings) -> Path:
    workflow = Workflow(particles, settings)
    page = workflow.go(
        lambda stage, before: work(stage, particles, settings, dict(before)),
        get_run_logger().warning,
    )
    name = "with" if settings.workflow.judge else "without"
    done = found(page.parent)[name]["stages"]
    columns = ("stage", "job", "particles", "seconds")
    create_table_artifact(
        [{column: one[column] for column in columns} for one in done],
        key=key(f"map-{workflow.project.name}-{name}-cryoray"),
        description=str(page),
    )
    return page


@task(cache_policy=NO_CACHE, task_run_name="{stage}")
def work(stage: str, particles: Path, settings: Settings, before: dict[str, Job]) -> Job:
    """Run one stage's job, unless it was done."""
    return Workflow(particles, settings).run(stage, before)


def main() -> None:
    """Run the flow on the command line's particles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("particles", type=Path, help="STAR file in RELION's project folder")
    parser.add_argument("--settings", type=Path, metavar="FILE.toml", help="settings")
    parser.add_argument(
        "--arms", choices=get_args(Arms), help="without: every particle and class is kept"
    )
    parser.add_argument(
        "--micrographs",
        type=Path,
        metavar="FILE.star",
        help="those that kept particles are extracted from again (workflow.micrographs)",
    )
    given = parser.parse_args()
    overrides = {"workflow": {"micrographs": given.micrographs}} if given.micrographs else None
    with command():
        print(single_particle(given.particles.absolute(), overrides, given.settings, given.arms))


if __name__ == "__main__":
    main()
