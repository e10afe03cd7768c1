"""Verbs on a Ray with its dashboard, which is then asked: ``python -m tests.cluster.dashboard FOLDER``.

In a process of its own, as the Ray that tests share has no dashboard; prints what is listed as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import ray

from cryoray.engine import runtime
from cryoray.serving.app import start
from cryoray.settings import load
from cryoray.verbs.classify import classify
from cryoray.verbs.ingest import ingest
from cryoray.verbs.train import train
from tests.examples import save_ensemble, write_project
from tests.sets import write_labelled_set


def listed(folder: Path) -> dict[str, Any]:
    """What the dashboard lists, after an ingestion, a training and a judging, while the service runs."""
    project = write_project(folder / "project")
    ensemble = save_ensemble(folder / "apoferritin").path
    sets = [write_labelled_set(folder, f"p{i}", n=30, seed=i) for i in range(2)]
    settings = load(
        runtime={"cpus": 4, "gpus": 0, "object_store_mib": 256, "dashboard_port": 0},
        ingest={"preparation": {"box": 32}, "local_max_mib": 0},
        train={"fit": {"epochs": 1, "batch": 32}, "folds": 2, "workers": 1},
        classify={"ensemble": str(ensemble), "local_max_mib": 0},
        serve={
            "ensembles": (str(ensemble),),
            "roots": (folder,),
            "port": 0,
            "token": "a-token-for-tests",
            "judges": 1,
            "preparers": 1,
        },
        registry=folder / "registry",
    )
    runtime.connect(settings.runtime)
    ingest([project], folder / "beta-galactosidase", settings)
    train(sets, folder / "facility", settings)
    classify(project, folder / "verdicts", settings)
    job = ray.get_runtime_context().get_job_id()
    with start(settings), _asking() as dashboard:

        def of(path: str) -> Callable[[], Any]:
            return lambda: dashboard.get(path).raise_for_status().json()

        data = _soon(
            of(f"/api/data/datasets/{job}"),
            lambda said: {one["state"] for one in said["datasets"]} == {"FINISHED"},
        )
        trained = _soon(
            of("/api/train/v2/runs/v1"),
            lambda said: {one["status"] for one in said["train_runs"]} == {"FINISHED"},
        )
        served = _soon(
            of("/api/serve/applications/"),
            lambda said: {one["status"] for one in said["applications"].values()} == {"RUNNING"},
        )
        stranger = httpx.get(str(dashboard.base_url.join("/api/serve/applications/"))).status_code
    return {
        "data": [one["dataset"] for one in data["datasets"]],
        "train": [one["name"] for one in trained["train_runs"]],
        "serve": {name: [*one["deployments"]] for name, one in served["applications"].items()},
        "stranger": stranger,
    }


def _asking() -> httpx.Client:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    return httpx.Client(
        base_url=str(runtime.dashboard()),
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )


def _soon(ask: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    """What is listed, as soon as it is complete: Ray tells its dashboard now and then."""
    for _ in range(120):
        if enough(said := ask()):
            return said
        time.sleep(0.5)
    raise AssertionError(f"after a minute the dashboard still said {said}")


if __name__ == "__main__":
    print("LISTED " + json.dumps(listed(Path(sys.argv[1]))), flush=True)
    runtime.disconnect()
