"""Ray Tune looks for networks and training settings: what was tried, and what each axis buys.

One network at a time, d1's task: fitted to the training distribution, measured on groups held out. ASHA
(Li et al. 2020) stops what does worse than others did at the same epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from pyarrow import csv
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler

from cryoray import report
from cryoray.boosting.filtering import everything, folds_of_groups
from cryoray.engine import runtime
from cryoray.errors import SettingsError
from cryoray.formats.files import replacing, replacing_folder
from cryoray.models.fit import Fit, FitTask
from cryoray.models.networks import NetworkConfig, build, parameters
from cryoray.preparation.examples import SetExamples, gather
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import AugmentSettings, FitSettings, Settings, TuneSettings

TABLE, REPORT = "trials.csv", "report.html"

AXES = ("depth", "width", "activation", "learning_rate", "augment")

#: Residual blocks in all, and how they are spread over stages.
_BLOCKS: dict[int, tuple[int, ...]] = {1: (1,), 2: (1, 1), 3: (1, 2), 5: (2, 3), 7: (2, 3, 2)}

#: Keep the better third at each rung.
_REDUCTION = 3


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What every trial needs to know; travels once, through the object store."""

    sets: tuple[Path, ...]
    rows: tuple[np.ndarray, ...]
    features: tuple[str, ...]
    fit: FitSettings
    inside: np.ndarray
    outside: np.ndarray
    seed: int
    gpu: bool


def tune(
    sets: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Try networks and settings on prepared sets, and say what each axis buys.

    Args:
        sets: folders of prepared sets.
        out: folder of `trials.csv` and `report.html`; an older search there is replaced.
        settings: ``tune`` says what is tried, ``train`` the rest.
        on_progress: told when a trial ends.
        on_event: ``tune.done`` with the best.

    Returns:
        the best trial: its axes, ``loss`` and ``accuracy`` on the groups held out.

    Raises:
        InputError: sets or labels that cannot be trained on, or ``out`` holds something else.
    """
    chosen, train = settings.tune, settings.train
    for depth in chosen.depth:
        if depth not in _BLOCKS:
            raise SettingsError(
                f"tune.depth: there is no network of {depth} blocks",
                remedy=f"choose from {', '.join(map(str, _BLOCKS))}",
            )
    examples, level = gather([Path(path).absolute() for path in sets], train)
    fold_of = folds_of_groups(examples.groups(level), train.folds, train.seed)
    with replacing_folder(Path(out).absolute(), "search", _is_search) as partial:
        runtime.connect(settings.runtime)
        job = _Job(
            sets=tuple(s.path for s in examples.sets),
            rows=tuple(examples.rows),
            features=examples.names,
            fit=train.fit,
            inside=np.flatnonzero(fold_of != 0),
            outside=np.flatnonzero(fold_of == 0),
            seed=train.seed,
            gpu=train.gpu,
        )
        trials = _run(job, chosen, settings, on_progress)
        table = pa.Table.from_pylist(trials)
        with replacing(partial / TABLE) as temporary:
            csv.write_csv(table, temporary)
        report.render(
            partial / REPORT,
            "What was tried",
            _page(trials, chosen, settings, examples, len(job.outside), level),
        )
    best = trials[0]
    on_event(Event("tune.done", best))
    return best


def _run(
    job: _Job, chosen: TuneSettings, settings: Settings, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """Every trial, the best first."""
    reference = ray.put(job)
    side_by_side = settings.train.workers or runtime.processors(job.gpu)
    resources = {"cpu": 1, "gpu": 1} if job.gpu else {"cpu": 1}
    space = {
        "depth": ray_tune.choice(list(chosen.depth)),
        "width": ray_tune.choice(list(chosen.width)),
        "activation": ray_tune.choice(list(chosen.activation)),
        "learning_rate": ray_tune.loguniform(*chosen.learning_rate),
        "augment": ray_tune.choice(list(chosen.augment)),
    }

    def trial(config: dict[str, Any]) -> None:
        _trial(config, ray.get(reference))

    with TemporaryDirectory() as storage:
        found = ray_tune.Tuner(
            ray_tune.with_resources(trial, resources),
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=chosen.samples,
                max_concurrent_trials=side_by_side,
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=job.fit.epochs,
                    grace_period=_first_rung(job.fit.epochs),
                    reduction_factor=_REDUCTION,
                ),
                search_alg=ray_tune.search.BasicVariantGenerator(random_state=job.seed),
            ),
            run_config=ray_tune.RunConfig(
                name="tune",
                storage_path=storage,
                verbose=0,
                callbacks=[_Teller(on_progress, chosen.samples)],
            ),
        ).fit()
        if found.errors:
            raise found.errors[0]
        trials = [_row(result, job) for result in found]
    return sorted(trials, key=lambda row: row["loss"])


def _first_rung(epochs: int) -> int:
    return max(1, round(epochs / _REDUCTION**2))


class _Teller(ray_tune.Callback):
    """Tells of trials that ended."""

    def __init__(self, on_progress: OnProgress, samples: int) -> None:
        self.on_progress, self.samples, self.done = on_progress, samples, 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.done += 1
        note = f"loss {trial.last_result['loss']:.3f} at epoch {trial.last_result['epoch']}"
        self.on_progress(Progress("tune", self.done, self.samples, "trials", note))


def _trial(config: dict[str, Any], job: _Job) -> None:
    """What a worker of Ray Tune does: one fit, reporting after each epoch."""
    torch.set_num_threads(1)
    examples = SetExamples(job.sets, job.rows, job.features)
    task = FitTask(
        "tune", network(config), everything(len(examples)).within(job.inside), job.outside, job.seed
    )
    fit = Fit(task, examples, fit_settings(config, job.fit), device="cuda" if job.gpu else "cpu")
    first = None
    while not fit.done:
        point = fit.run_epoch()
        if point.epoch == _first_rung(job.fit.epochs):
            first = point.val_loss
        ray_tune.report(
            {
                "epoch": point.epoch,
                "loss": point.val_loss,
                "accuracy": point.val_accuracy,
                "first_rung": first,
                "images_per_second": point.images_per_second,
            }
        )


def network(config: dict[str, Any]) -> NetworkConfig:
    """The network that a point of the search stands for."""
    return NetworkConfig(
        width=config["width"], blocks=_BLOCKS[config["depth"]], activation=config["activation"]
    )


def fit_settings(config: dict[str, Any], fit: FitSettings) -> FitSettings:
    """The fit's settings at a point of the search; ``augment`` scales every strength there is."""
    scaled = {}
    for name, value in fit.augment:
        if not isinstance(value, bool):
            limits = AugmentSettings.model_fields[name].metadata
            most = min((m.le for m in limits if hasattr(m, "le")), default=np.inf)
            scaled[name] = float(min(value * config["augment"], most))
    augment = fit.augment.model_copy(update={**scaled, "rotate": config["augment"] > 0})
    return fit.model_copy(update={"learning_rate": config["learning_rate"], "augment": augment})


def _row(result: Any, job: _Job) -> dict[str, Any]:
    config, metrics = result.config, result.metrics
    size = parameters(build(network(config), len(job.features), 0))
    keys = ("epoch", "loss", "accuracy", "first_rung", "images_per_second")
    axes = {axis: config[axis] for axis in AXES}
    return {**axes, "parameters": size, **{key: metrics[key] for key in keys}}


def bought(trials: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """What the values of an axis came to: trials, median loss at the first rung, best loss and accuracy.

    All trials reach the first rung, so medians there compare like with like; the best are those that ASHA
    let run. Learning rates are taken by thirds of their range.
    """
    values = np.array([trial[axis] for trial in trials], object)
    if axis == "learning_rate":
        edges = np.quantile(values.astype(float), [0, 1 / 3, 2 / 3, 1])
        place = np.clip(np.searchsorted(edges, values.astype(float), side="right") - 1, 0, 2)
        middle = [float(np.median(values[place == p])) for p in range(3) if (place == p).any()]
        values = np.array(middle, object)[np.unique(place, return_inverse=True)[1]]
    table = []
    for value in sorted(set(values)):
        here = [trial for trial, own in zip(trials, values, strict=True) if own == value]
        best = min(here, key=lambda trial: trial["loss"])
        table.append(
            {
                "value": value,
                "trials": len(here),
                "first_rung": float(np.median([trial["first_rung"] for trial in here])),
                "loss": best["loss"],
                "accuracy": best["accuracy"],
            }
        )
    return table


def _page(
    trials: Sequence[dict[str, Any]],
    chosen: TuneSettings,
    settings: Settings,
    examples: SetExamples,
    held_out: int,
    level: str,
) -> list[report.Section]:
    best, fit = trials[0], settings.train.fit
    lead = (
        f"{len(trials)} trials of one network on {len(examples) - held_out:,} images, measured on"
        f" {held_out:,} of {level}s held out. The best of many trials on one held-out fold is luckier than"
        " it is good: cross-validate before believing it."
    )
    rows = [
        [
            str(number),
            *(report.decimal(t[a]) if isinstance(t[a], float) else str(t[a]) for a in AXES),
            f"{t['parameters']:,}",
            str(t["epoch"]),
            report.decimal(t["loss"]),
            report.percent(t["accuracy"]),
        ]
        for number, t in enumerate(trials, 1)
    ]
    sections = [
        report.summary_section(
            lead,
            {"prepared sets": ", ".join(str(s.path) for s in examples.sets)},
            {TABLE: f"{len(trials)} rows"},
            {axis.replace("_", " "): f"{best[axis]:.3g}" if isinstance(best[axis], float) else str(best[axis])
             for axis in AXES},
        )
    ]  # fmt: skip
    for axis in AXES:
        table = bought(trials, axis)
        blocks: list[report.Block] = []
        if axis != "activation" and len(table) > 1:
            x = np.array([float(row["value"]) for row in table])
            lines = [
                report.Line("best", x, np.array([row["loss"] for row in table])),
                report.Line(
                    "median at the first rung",
                    x,
                    np.array([row["first_rung"] for row in table]),
                    "muted",
                    (0, (5, 1.6)),
                ),
            ]
            name = axis.replace("_", " ")
            svg = report.against(lines, f"axis-{axis}", name, "held-out loss")
            blocks.append(report.Figure(svg, f"Loss against {name}", f"Held-out loss and {name}."))
        cells = [
            [
                f"{row['value']:.2g}" if isinstance(row["value"], float) else str(row["value"]),
                str(row["trials"]),
                report.decimal(row["first_rung"]),
                report.decimal(row["loss"]),
                report.percent(row["accuracy"]),
            ]
            for row in table
        ]
        heads = (axis.replace("_", " "), "trials", "median, first rung", "best loss", "accuracy")
        blocks += report.table_section("", heads, cells).blocks
        sections.append(report.Section(f"What {axis.replace('_', ' ')} buys", blocks))
    columns = [axis.replace("_", " ") for axis in AXES]
    columns = ["trial", *columns, "weights", "epochs", "loss", "accuracy"]
    rung = _first_rung(fit.epochs)
    caption = f"At most {fit.epochs} epochs; ASHA stops the worse ones from epoch {rung} on."
    sections.append(report.table_section("What was tried", columns, rows, caption))
    sections.append(report.provenance_section(report.command(), [chosen, settings.train]))
    return sections


def _is_search(folder: Path) -> bool:
    return (folder / TABLE).is_file()
