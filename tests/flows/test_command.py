"""A flow as a command says in one sentence what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_a_server_of_prefect_that_is_away_is_named_with_its_variable(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    for flow in (["flows.single_particle", str(tmp_path)], ["flows.facility_day", "--out", "day"]):
        done = subprocess.run(
            [sys.executable, "-m", *flow],
            env={**environment, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "http://127.0.0.1:9/api, which PREFECT_API_URL names, does not answer" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "day").exists()
