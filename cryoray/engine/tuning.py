"""Ray Tune runs the trials of a search in parallel and stops the worse ones early (ASHA)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from cryoray.boosting.filtering import everything
from cryoray.engine import runtime
from cryoray.models.fit import Fit, FitTask
from cryoray.models.networks import build, parameters
from cryoray.models.search import AXES, REDUCTION, first_rung, fit_settings, network
from cryoray.preparation.examples import SetExamples
from cryoray.records import OnProgress, Progress
from cryoray.settings import FitSettings, Settings, TuneSettings


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What every trial needs to know; travels once, through the object store."""

    sets: tuple[Path, ...]
    rows: tuple[np.ndarray, ...]
    features: tuple[str, ...]
    fit: FitSettings
    inside: np.ndarray
    outside: np.ndarray
    seed: int
    gpu: bool


def run(
    search: Search, chosen: TuneSettings, settings: Settings, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """Every trial, the best first."""
    reference = ray.put(search)
    side_by_side = settings.train.workers or runtime.processors(search.gpu)
    resources = {"cpu": 1, "gpu": 1} if search.gpu else {"cpu": 1}
    space = {
        "depth": tune.choice(list(chosen.depth)),
        "width": tune.choice(list(chosen.width)),
        "activation": tune.choice(list(chosen.activation)),
        "learning_rate": tune.loguniform(*chosen.learning_rate),
        "augment": tune.choice(list(chosen.augment)),
    }

    def trial(config: dict[str, Any]) -> None:
        _trial(config, ray.get(reference))

    with TemporaryDirectory() as storage:
        found = tune.Tuner(
            tune.with_resources(trial, resources),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=chosen.samples,
                max_concurrent_trials=side_by_side,
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=search.fit.epochs,
                    grace_period=first_rung(search.fit.epochs),
                    reduction_factor=REDUCTION,
                ),
                search_alg=tune.search.BasicVariantGenerator(random_state=search.seed),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=storage,
                verbose=0,
                callbacks=[_Counted(on_progress, chosen.samples)],
            ),
        ).fit()
        if found.errors:
            raise found.errors[0]
        trials = [_row(result, search) for result in found]
    return sorted(trials, key=lambda row: row["loss"])


class _Counted(tune.Callback):
    """Reports how many trials have ended."""

    def __init__(self, on_progress: OnProgress, samples: int) -> None:
        self.on_progress, self.samples, self.done = on_progress, samples, 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.done += 1
        note = f"loss {trial.last_result['loss']:.3f} at epoch {trial.last_result['epoch']}"
        self.on_progress(Progress("tune", self.done, self.samples, "trials", note))


def _trial(config: dict[str, Any], search: Search) -> None:
    """What a worker of Ray Tune does: one fit, reporting after each epoch."""
    torch.set_num_threads(1)
    examples = SetExamples(search.sets, search.rows, search.features)
    task = FitTask(
        "tune",
        network(config),
        everything(len(examples)).within(search.inside),
        search.outside,
        search.seed,
    )
    fit = Fit(
        task, examples, fit_settings(config, search.fit), device="cuda" if search.gpu else "cpu"
    )
    first = None
    while not fit.done:
        point = fit.run_epoch()
        if point.epoch == first_rung(search.fit.epochs):
            first = point.val_loss
        tune.report(
            {
                "epoch": point.epoch,
                "loss": point.val_loss,
                "accuracy": point.val_accuracy,
                "first_rung": first,
                "images_per_second": point.images_per_second,
            }
        )


def _row(result: Any, search: Search) -> dict[str, Any]:
    config, metrics = result.config, result.metrics
    size = parameters(build(network(config), len(search.features), 0))
    keys = ("epoch", "loss", "accuracy", "first_rung", "images_per_second")
    axes = {axis: config[axis] for axis in AXES}
    return {**axes, "parameters": size, **{key: metrics[key] for key in keys}}
