"""How good an ensemble, or a training, is on groups that it has not seen, as flows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.formats.names import METRICS
from cryoray.settings import load

from . import engine
from .reporter import Reporter, key, link_report, run_of


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
    given = overrides or {}
    old = load(**given).evaluate
    if old.cross_validate is not None:  # understood for one release
        get_run_logger().warning(
            "evaluate.cross_validate is now the flow cross-validate with cross_validate.folds; the old"
            " name goes with the next release"
        )
        chosen = {"folds": old.cross_validate, "repeats": old.repeats, "ablate": old.ablate}
        kept = {name: value for name, value in given.items() if name != "evaluate"}
        metrics = judge_folds([prepared], out, {**kept, "cross_validate": chosen})
    else:
        metrics = judge(ensemble, prepared, out, given)
    tabulate(metrics, out)
    return metrics


@flow(name="cross-validate", flow_run_name="cross-validate {out}")
def cross_validate(
    sets: list[Path], out: Path, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train anew without each fold of groups, judge the fold, and keep the numbers.

    Args:
        sets: prepared sets with labels.
        out: folder of the numbers, the report and the ensembles; must not exist.
        overrides: settings over those of file and environment, nested as in the TOML file.
    """
    metrics = judge_folds(sets, out, overrides or {})
    tabulate(metrics, out)
    return metrics


@task(cache_policy=NO_CACHE, task_run_name="judge {prepared}")
def judge(ensemble: Path, prepared: Path, out: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Have ``cryoray.verbs.evaluate.measure`` done."""
    asked = {"ensemble": ensemble, "prepared": prepared, "out": out}
    return _measured("evaluate", asked, out, overrides)


@task(cache_policy=NO_CACHE, task_run_name="cross-validate {out}")
def judge_folds(sets: list[Path], out: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Have ``cryoray.verbs.cross_validate.cross_validate`` done."""
    return _measured("cross-validate", {"sets": sets, "out": out}, out, overrides)


def _measured(
    verb: str, asked: dict[str, Any], out: Path, overrides: dict[str, Any]
) -> dict[str, Any]:
    with Reporter("evaluation", run_of(out)) as reporter:
        engine.run(verb, asked, out, overrides, reporter.progress, reporter.event)
    metrics: dict[str, Any] = json.loads((Path(out) / METRICS).read_text())
    return metrics


@task(cache_policy=NO_CACHE, task_run_name="tabulate {out}")
def tabulate(metrics: dict[str, Any], out: Path) -> None:
    """Keep the plain numbers as a table artifact."""
    create_table_artifact(numbers(metrics), key=key(f"metrics-{run_of(out)}"), description=str(out))
    link_report("metrics", out)


def numbers(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The plain numbers among the metrics, one row each."""
    return [
        {"metric": name, "value": value}
        for name, value in metrics.items()
        if isinstance(value, int | float)
    ]
