"""A source to verdicts, as a flow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.formats.names import QUARANTINE_TABLE, VERDICTS_TABLE
from cryoray.records import VERDICTS

from . import engine
from .reporter import Reporter, key, link_report, run_of


@flow(name="classify", flow_run_name="classify {source}")
def classify(
    source: Path,
    out: Path,
    overrides: dict[str, Any] | None = None,
    ensemble: str | None = None,
) -> Path:
    """Judge every image of the source, and keep how many went where.

    Args:
        source: what ``cryoray classify`` takes.
        out: folder of the verdicts.
        overrides: settings over those of file and environment, nested as in the TOML file.
        ensemble: that judges, a name in the registry or a folder; empty: as the settings say.
    """
    verdicts = judge(source, out, with_ensemble(overrides, ensemble))
    tabulate(verdicts)
    link_report("verdicts", verdicts)
    return verdicts


def with_ensemble(overrides: dict[str, Any] | None, ensemble: str | None) -> dict[str, Any]:
    """The settings, with the ensemble that the form named."""
    given = overrides or {}
    if not ensemble:
        return given
    return {**given, "classify": {**given.get("classify", {}), "ensemble": ensemble}}


@task(cache_policy=NO_CACHE, task_run_name="judge {source}")
def judge(source: Path, out: Path, overrides: dict[str, Any]) -> Path:
    """Have ``cryoray.verbs.classify.classify`` done."""
    with Reporter("verdicts", run_of(out)) as reporter:
        asked = {"source": source, "out": out}
        engine.run("classify", asked, out, overrides, reporter.progress, reporter.event)
    return Path(out).absolute()


@task(cache_policy=NO_CACHE, task_run_name="tabulate {verdicts}")
def tabulate(verdicts: Path) -> None:
    """Keep the counts by verdict as a table artifact."""
    create_table_artifact(
        counts(verdicts), key=key(f"verdicts-{run_of(verdicts)}"), description=str(verdicts)
    )


def counts(verdicts: Path) -> list[dict[str, Any]]:
    """One row for each verdict and one for the quarantined, over all sources that were judged."""
    judged = Counter(
        verdict
        for file in verdicts.rglob(VERDICTS_TABLE)
        for verdict in pq.read_table(file)["verdict"].to_pylist()
    )
    quarantined = (pq.read_metadata(file).num_rows for file in verdicts.rglob(QUARANTINE_TABLE))
    counted = {verdict: judged[verdict] for verdict in VERDICTS} | {"quarantined": sum(quarantined)}
    return [{"verdict": verdict, "images": images} for verdict, images in counted.items()]
