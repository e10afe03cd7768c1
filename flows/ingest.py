"""Sources to a prepared set, as a flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.reader import by_reason

from . import engine
from .reporter import Reporter, key, run_of


@flow(name="ingest", flow_run_name="ingest into {out}")
def ingest(sources: list[Path], out: Path, overrides: dict[str, Any] | None = None) -> Path:
    """Prepare the sources into one set, and keep a table of what is in it.

    Args:
        sources: what ``cryoray ingest`` takes.
        out: folder of the set.
        overrides: settings over those of file and environment, nested as in the TOML file.
    """
    prepared = prepare(sources, out, overrides or {})
    tabulate(prepared)
    return prepared


@task(cache_policy=NO_CACHE, task_run_name="prepare {out}")
def prepare(sources: list[Path], out: Path, overrides: dict[str, Any]) -> Path:
    """Have ``cryoray.verbs.ingest.ingest`` done."""
    with Reporter("set", run_of(out)) as reporter:
        asked = {"sources": sources, "out": out}
        engine.run("ingest", asked, out, overrides, reporter.progress, reporter.event)
    return Path(out).absolute()


@task(cache_policy=NO_CACHE, task_run_name="tabulate {prepared}")
def tabulate(prepared: Path) -> None:
    """Keep images, kept and discarded by project as a table artifact; and why rows are not in it."""
    create_table_artifact(
        contents(prepared), key=key(f"set-{run_of(prepared)}"), description=str(prepared)
    )
    reasons = by_reason(PreparedSet.open(prepared).quarantine["reason"].to_pylist())
    create_table_artifact(
        [{"quarantined": count, "reason": why} for why, count in reasons.items()],
        key=key(f"quarantine-{run_of(prepared)}"),
        description=f"rows that are not in {prepared}",
    )


def contents(prepared: Path) -> list[dict[str, Any]]:
    """One row for each project of a set: how many images, kept, discarded, without a label."""
    table = PreparedSet.open(prepared).table
    rows = []
    for project in pc.unique(table["project"]).to_pylist():
        labels = table.filter(pc.equal(table["project"], project))["label"]
        kept = pc.sum(labels).as_py() or 0
        rows.append(
            {
                "project": project,
                "images": len(labels),
                "kept": kept,
                "discarded": len(labels) - labels.null_count - kept,
                "without label": labels.null_count,
            }
        )
    return rows
