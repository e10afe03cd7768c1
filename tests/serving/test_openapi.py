"""What the service says of itself in OpenAPI is what it does: schemathesis tries to prove otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cryoray.models.ensemble import Ensemble
from cryoray.protocol.messages import ENSEMBLES, HEALTH, JUDGE, METRICS, SHADOW
from cryoray.serving.lineup import Served
from tests.serving.test_ingress import TOKEN, InProcess, application, over_http

pytestmark = pytest.mark.long


@pytest.fixture
def service(tiny_ensemble: Path, project: Path) -> Iterator[httpx.Client]:
    judging = InProcess(Ensemble.load(tiny_ensemble))
    served = Served.of("tiny", judging.ensemble, tiny_ensemble)
    with over_http(application(judging, served, roots=(project.parent,), max_upload_mib=1)) as it:
        yield it


def schemathesis(service: httpx.Client, examples: int, folder: Path) -> None:
    """Run it as its users do; what it finds is in its output."""
    # 413 refuses too: a body of many paths that is wrong may be too large before anybody reads it.
    refusals = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]
    (folder / "schemathesis.toml").write_text(
        f"[checks.negative_data_rejection]\nexpected-statuses = {refusals}\n"
    )
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{service.base_url}/openapi.json",
            "--header",
            f"Authorization: Bearer {TOKEN}",
            "--max-examples",
            str(examples),
            "--seed",
            "1",
            "--generation-database",
            "none",
            # That a request is right in form does not mean that there is such a file or row.
            "--exclude-checks",
            "positive_data_acceptance",
            "--no-color",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for phase in ("Examples", "Coverage", "Fuzzing"):
        assert f"✅  {phase}" in done.stdout, done.stdout


def test_the_service_does_what_its_openapi_says(service: httpx.Client, tmp_path: Path) -> None:
    schemathesis(service, 5, tmp_path)
    # It got as far as the images.
    assert 'cryoray_requests_total{status="200"}' in service.get(METRICS).text


@pytest.mark.slow
def test_the_service_does_what_its_openapi_says_a_thousand_times(
    service: httpx.Client, tmp_path: Path
) -> None:
    schemathesis(service, 1000, tmp_path)


def test_openapi_has_every_address_and_the_token(service: httpx.Client) -> None:
    said = service.get("/openapi.json").json()
    assert {JUDGE, ENSEMBLES, SHADOW, HEALTH, METRICS} <= set(said["paths"])
    assert said["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path in (JUDGE, ENSEMBLES, SHADOW):
        for operation in said["paths"][path].values():
            assert operation["security"] == [{"HTTPBearer": []}]
