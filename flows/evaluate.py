"""An ensemble's numbers on groups that it has not seen, as a flow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows import engine
from flows.telling import Telling, key


@flow(name="evaluate", flow_run_name="evaluate {ensemble}")
def evaluate(
    ensemble: Path, prepared: Path, out: Path, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Judge the groups that the ensemble has not seen, and keep the numbers.

    Args:
        ensemble: folder of the ensemble.
        prepared: a prepared set with labels.
        out: folder of the numbers and the report.
        overrides: settings over those of file and environment, nested as in the TOML file.
    """
    metrics = judge(ensemble, prepared, out, overrides or {})
    tabulate(metrics, out)
    return metrics


@task(cache_policy=NO_CACHE, task_run_name="judge {prepared}")
def judge(ensemble: Path, prepared: Path, out: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Have ``cryoray.verbs.evaluate``, or ``cross_validate`` where the settings say so, done."""
    with Telling("evaluation") as told:
        asked = {"ensemble": ensemble, "prepared": prepared, "out": out}
        engine.run("evaluate", asked, out, overrides, told.progress, told.event)
    metrics: dict[str, Any] = json.loads((Path(out) / "metrics.json").read_text())
    return metrics


@task(cache_policy=NO_CACHE, task_run_name="tabulate {out}")
def tabulate(metrics: dict[str, Any], out: Path) -> None:
    """Keep the plain numbers as a table artifact."""
    create_table_artifact(numbers(metrics), key=key(f"metrics-{out.name}"), description=str(out))


def numbers(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The plain numbers among the metrics, one row each."""
    return [
        {"metric": name, "value": value}
        for name, value in metrics.items()
        if isinstance(value, int | float)
    ]
