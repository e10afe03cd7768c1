"""Particles to a refined map and its report, in RELION's own project and pipeline, as a flow.

python -m flows.single_particle PARTICLES.star [--settings FILE.toml] [--without-cryoray]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.settings import Settings, load
from cryoray.workflow.relion import Job
from cryoray.workflow.single_particle import Done, Workflow
from flows.telling import key


@flow(name="single-particle", flow_run_name="map of {particles}")
def single_particle(
    particles: Path, overrides: dict[str, Any] | None = None, settings_file: Path | None = None
) -> Path:
    """Go through every stage; those done before are recognised and skipped.

    Args:
        particles: STAR file of extracted particles, in RELION's project folder.
        overrides: settings over those of file and environment, nested as in the TOML file.
        settings_file: the TOML file.

    Returns:
        the report's page.
    """
    settings = load(settings_file, **(overrides or {}))
    workflow = Workflow(particles, settings)
    jobs: dict[str, Job] = {}
    done: list[Done] = []
    for stage in workflow.stages():
        jobs[stage] = work(stage, particles, settings, jobs)
        job = jobs[stage]
        count = workflow.particles_after(stage, jobs)
        done.append(Done(stage, job.name, job.seconds, count, job.skipped))
    page = workflow.report(done, workflow.resolution(jobs["postprocess"]))
    create_table_artifact(
        [
            {"stage": one.stage, "job": one.job, "particles": one.particles, "seconds": one.seconds}
            for one in done
        ],
        key=key(f"map-{workflow.project.name}"),
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
    parser.add_argument("--without-cryoray", action="store_true", help="keep everything")
    given = parser.parse_args()
    overrides = {"workflow": {"judge": False}} if given.without_cryoray else {}
    print(single_particle(given.particles.absolute(), overrides, given.settings))


if __name__ == "__main__":
    main()
