"""Replicas come when images wait: a configuration file as it is deployed, on a real Ray."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from cryoray.protocol.client import Client
from cryoray.serving.app import _free_port
from cryoray.serving.config import load
from cryoray.settings import RuntimeSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def running(deployment: str) -> int:
    application = ray_serve.status().applications["cryoray"]
    return application.deployments[deployment].replica_states.get("RUNNING", 0)


def test_replicas_follow_the_images_that_wait(
    ray_cluster: RuntimeSettings, project: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    file = tmp_path / "small.yaml"
    policy = {
        "policy_function": "cryoray.serving.scaling:ByQueuedImages",
        "policy_kwargs": {"images_per_replica": 300},
    }
    scaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "look_back_period_s": 11,
        "upscale_delay_s": 0,
        "downscale_delay_s": 5,
        "aggregation_function": "max",
        "policy": policy,
    }
    args = {
        "ensembles": [str(tiny_ensemble)],
        "roots": [str(project.parent)],
        "token": "a-token-for-tests",
        "judges": 1,
        "preparers": 1,
        "batch": 32,
    }
    application = {
        "name": "cryoray",
        "route_prefix": "/",
        "import_path": "cryoray.serving.app:build",
        "args": args,
        "deployments": [{"name": "judge-tiny", "autoscaling_config": scaling}],
    }
    port = _free_port("127.0.0.1", 0)
    http = {"host": "127.0.0.1", "port": port}
    file.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
    ray_serve.start(http_options=HTTPOptions(**http))
    enough = threading.Event()
    try:
        _get_global_client().deploy_apps(load(file), _blocking=True)
        with (
            Client(f"http://127.0.0.1:{port}", "a-token-for-tests") as client,
            ThreadPoolExecutor(12) as pool,
        ):
            assert running("judge-tiny") == 1

            def keep_asking() -> None:
                while not enough.is_set():
                    assert len(client.judge(project)) == 175

            asking = [pool.submit(keep_asking) for _ in range(12)]
            end = time.monotonic() + 120
            while running("judge-tiny") < 3 and time.monotonic() < end:
                time.sleep(0.5)
            most = running("judge-tiny")
            enough.set()
            for one in asking:
                one.result()
            assert most == 3
            end = time.monotonic() + 120
            while running("judge-tiny") > 1 and time.monotonic() < end:
                time.sleep(0.5)
            assert running("judge-tiny") == 1
    finally:
        enough.set()
        ray_serve.shutdown()
