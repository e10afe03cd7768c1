"""How much of a plain PyTorch loop's speed Ray Train keeps, and what a second worker brings.

The same network, images, threads, batches and random choices in each row: ``plain`` runs `models.fit.Fit`
in this process, the others run it in the workers of Ray Train, as `cryoray train` does, which keep its
state after each epoch. Start-up stands apart: of Ray, of the workers, of their imports.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.common import Row, main, result
from cryoray.boosting.filtering import everything
from cryoray.engine import runtime
from cryoray.engine.training import RayFits
from cryoray.models.fit import Epoch, Fit, FitTask
from cryoray.models.networks import DEFAULT_MEMBERS
from cryoray.preparation.examples import SetExamples, gather
from cryoray.records import ignore
from cryoray.settings import Settings, load
from cryoray.simulation import simulate
from cryoray.verbs.ingest import ingest

#: Images of each of three simulated projects, and epochs; the first epoch warms up and is not counted.
IMAGES = int(os.environ.get("BENCH_TRAIN_IMAGES", "1000"))
EPOCHS = int(os.environ.get("BENCH_TRAIN_EPOCHS", "4"))


def measure() -> dict[str, Any]:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        past = load(simulate={"projects": 3, "images": IMAGES, "box": 64})
        simulate(folder / "raw", past)
        sets = [ingest([folder / "raw"], folder / "set", past)]
        settings = load(train={"fit": {"epochs": EPOCHS}, "workers": 1})
        examples, _ = gather(sets, settings.train)
        runtime.connect(settings.runtime)
        rows = [_plain(examples, settings)]
        for workers in (1, 2):
            chosen = settings.train.model_copy(update={"workers": workers})
            rows.append(
                _ray(
                    examples,
                    settings.model_copy(update={"train": chosen}),
                    folder / f"run-{workers}",
                )
            )
        runtime.disconnect()
    return result(
        "Images per second of training one network, Ray Train beside a plain loop",
        rows,
        ratios=("images/s",),
        notes=(
            f"{len(examples):,} simulated images of 64 px, {EPOCHS} epochs, the first not counted; d1, one "
            "thread for each process.",
            "Two workers share the same global batch and the same cores.",
            "Rest: wall-clock seconds that were not in epochs; of Ray Train the start of workers and "
            "checkpoints.",
        ),
    )


def _task(examples: SetExamples) -> FitTask:
    sampler = everything(len(examples))
    return FitTask("d1-final", DEFAULT_MEMBERS[0], sampler, np.empty(0, np.int64), 1)


def _plain(examples: SetExamples, settings: Settings) -> Row:
    torch.set_num_threads(1)  # as a worker of Ray Train has
    began = time.perf_counter()
    fit = Fit(_task(examples), examples, settings.train.fit)
    epochs = []
    while not fit.done:
        epochs.append(fit.run_epoch())
    return _row("plain loop", 1, epochs, len(examples), time.perf_counter() - began)


def _ray(examples: SetExamples, settings: Settings, folder: Path) -> Row:
    folder.mkdir()
    workers = settings.train.workers or 1
    fits = RayFits(examples, settings, folder, 1, ignore)
    began = time.perf_counter()
    fits([_task(examples)])
    seconds = time.perf_counter() - began
    return _row("Ray Train", workers, fits.curves(), len(examples), seconds)


def _row(name: str, workers: int, epochs: list[Epoch], images: int, seconds: float) -> Row:
    speeds = [epoch.images_per_second for epoch in epochs[1:]]
    busy = sum(images / epoch.images_per_second for epoch in epochs)
    return {
        "loop": f"{name}, {workers} worker{'s' if workers > 1 else ''}",
        "images/s": round(median(speeds), 1),
        "rest s": round(seconds - busy, 1),
    }


if __name__ == "__main__":
    main(measure)
