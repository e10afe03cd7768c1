"""A Prefect server takes every deployment as README has them made, and its forms show what people fill in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

FLOWS = Path(__file__).parents[2] / "flows"

pytestmark = pytest.mark.long


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """One `prefect` command against the server of these tests."""
    return subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *command],
        cwd=FLOWS.parent,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_all_are_deployed_where_there_is_no_kubernetes_pool(prefect: None) -> None:
    """Before, the Kubernetes deployments stood in the same file, and the command ended with 1."""
    for command in (
        ("work-pool", "create", "cryoray", "--type", "process"),
        ("work-queue", "create", "sessions", "--pool", "cryoray", "--priority", "1"),
        ("work-queue", "create", "batch", "--pool", "cryoray", "--priority", "10"),
    ):
        made = run(*command)
        assert made.returncode == 0, made.stdout + made.stderr
    deployed = run("deploy", "--prefect-file", "flows/prefect.yaml", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    with get_client(sync_client=True) as client:
        found = {one.name: one for one in client.read_deployments()}
    schemas = {name: one.parameter_openapi_schema or {} for name, one in found.items()}
    forms = {name: schema["properties"] for name, schema in schemas.items()}
    assert forms["classify"]["ensemble"]["title"] == "ensemble"
    assert found["session"].work_queue_name == "sessions"
