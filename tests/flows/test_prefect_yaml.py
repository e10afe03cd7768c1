"""`prefect.yaml` says what Prefect would do: it ignores misspelt keys without a word, this does not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect import Flow
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    WorkPoolConfig,
)
from prefect.cli.deploy._schedules import _schedule_config_to_deployment_schedule
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel

FLOWS = Path(__file__).parents[2] / "flows"
GIVEN: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FLOWS / name).read_text())
    for name in ("prefect.yaml", "prefect-k8s.yaml")
}
DEPLOYMENTS: list[dict[str, Any]] = [
    deployment for given in GIVEN.values() for deployment in given["deployments"]
]


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    path, _, name = deployment["entrypoint"].partition(":")
    assert (FLOWS.parent / path).is_file(), path
    found = getattr(import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(found, Flow)
    return found


def unknown(given: dict[str, Any], model: type[BaseModel]) -> set[str]:
    known = {field.alias or name for name, field in model.model_fields.items()}
    return set(given) - known


def test_prefect_knows_every_key() -> None:
    for given in GIVEN.values():
        PrefectYamlModel.model_validate(given)
        assert unknown(given, PrefectYamlModel) == {"definitions"}, "anchors alone"
    for deployment in DEPLOYMENTS:
        assert not unknown(deployment, DeploymentConfig), deployment["name"]
        assert not unknown(deployment["work_pool"], WorkPoolConfig)
        assert not unknown(deployment.get("concurrency_limit", {}), ConcurrencyLimitSpec)
        for schedule in deployment.get("schedules", ()):
            _schedule_config_to_deployment_schedule(schedule)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["name"])
def test_parameters_are_those_of_the_flow_and_each_is_explained(deployment: dict[str, Any]) -> None:
    schema = parameter_schema(flow_of(deployment)).model_dump()
    for name, field in schema["properties"].items():
        assert field.get("description"), f"{deployment['name']}: {name} is not explained"
    given = deployment.get("parameters", {})
    assert set(given) <= set(schema["properties"])
    if deployment.get("schedules"):
        Draft202012Validator(
            {"type": "object", "required": schema["required"], "properties": {}}
        ).validate(given)


def test_no_file_needs_a_pool_of_another_so_that_each_deploys_whole() -> None:
    pools = {
        name: {deployment["work_pool"]["name"] for deployment in given["deployments"]}
        for name, given in GIVEN.items()
    }
    assert pools == {"prefect.yaml": {"cryoray"}, "prefect-k8s.yaml": {"cryoray-k8s"}}


def test_every_flow_has_a_deployment_and_sessions_come_first() -> None:
    deployed = {flow_of(one).name for one in DEPLOYMENTS}
    named = (
        "ingest train evaluate cross-validate classify promote rollback session nightly facility-day"
        " single-particle"
    )
    others = {"validate-fsc", "validate-reconstruct", "validate-similarity", "collections"}
    assert deployed == {*named.split(), *others}
    queues = {one["name"]: one["work_pool"]["work_queue_name"] for one in DEPLOYMENTS}
    assert queues["session"] == queues["session-k8s"] == "sessions"
    assert queues["train"] == queues["nightly"] == "batch"


def test_one_training_and_one_night_at_a_time() -> None:
    for deployment in DEPLOYMENTS:
        if deployment["name"].startswith(("train", "nightly", "cross-validate")):
            assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
