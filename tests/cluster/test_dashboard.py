"""What a facility's staff see of cryoray in Ray's dashboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.system
def test_the_dashboard_lists_what_ran_under_names_that_people_gave(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.dashboard", str(tmp_path)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = (one for one in done.stdout.splitlines() if one.startswith("LISTED "))
    listed = json.loads(line.removeprefix("LISTED "))
    # Ray adds an id, so that two runs under one name are two.
    data = {re.sub(r"_[0-9A-Za-z]{20,}(_\d+)?$", "", name) for name in listed["data"]}
    assert data == {"ingest beta-galactosidase", "classify project"}
    assert listed["train"] == ["train facility d3", "train facility d2", "train facility d1"]
    (served,) = listed["serve"].values()
    assert set(served) == {"preparer", "judge-apoferritin", "supervisor", "ingress"}
    assert listed["stranger"] == 401, "only for holders of Ray's token"
