"""Prepared sets to an ensemble, as a flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from cryoray.formats.names import CARD

from . import engine
from .reporter import Reporter, key, run_of

#: A global concurrency limit of Prefect: ``prefect gcl create cryoray-training --limit 1``.
ONE_TRAINING = "cryoray-training"


@flow(name="train", flow_run_name="train {out}")
def train(sets: list[Path], out: Path, overrides: dict[str, Any] | None = None) -> Path:
    """Train an ensemble on the sets, and keep its card.

    Args:
        sets: prepared sets with labels.
        out: folder of the ensemble.
        overrides: settings over those of file and environment, nested as in the TOML file.
    """
    ensemble = boost(sets, out, overrides or {})
    keep_card(ensemble)
    return ensemble


@task(cache_policy=NO_CACHE, task_run_name="boost {out}")
def boost(sets: list[Path], out: Path, overrides: dict[str, Any]) -> Path:
    """Have ``cryoray.verbs.train.train`` done, one training at a time where the limit was made."""
    with Reporter("ensemble", run_of(out)) as reporter, concurrency(ONE_TRAINING):
        asked = {"sets": sets, "out": out}
        engine.run("train", asked, out, overrides, reporter.progress, reporter.event)
    return Path(out).absolute()


@task(cache_policy=NO_CACHE, task_run_name="card of {ensemble}")
def keep_card(ensemble: Path) -> None:
    """Keep the ensemble's card as a markdown artifact."""
    create_markdown_artifact(
        (ensemble / CARD).read_text(),
        key=key(f"card-{run_of(ensemble)}"),
        description=str(ensemble),
    )
