"""Each claim of `SECURITY.md` names a test, and the test is there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
CLAIMS = re.findall(r"^\| (.+?) \| (`tests/.+`) \|$", TEXT, re.M)


@pytest.mark.parametrize(("claim", "tests"), CLAIMS, ids=range(len(CLAIMS)))
def test_a_claim_has_its_tests(claim: str, tests: str) -> None:
    for file, name in re.findall(r"`([^`:]+)::(\w+)`", tests):
        defined = {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in defined, f"{claim}: {file} has no {name}"


def test_every_row_of_the_table_is_a_claim_with_a_test() -> None:
    table = TEXT.partition("## Claims")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) - 2 == len(CLAIMS) > 20


def test_nothing_phones_home() -> None:
    names = ("PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED")
    script = f"import os, flows, cryoray; print(*(os.environ[name] for name in {names}))"
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=bare,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["false", "1", "0"]
    for file in ("Containerfile", "slurm/train.sh", "onprem/cluster.yaml"):
        assert "RAY_USAGE_STATS_ENABLED=0" in (ROOT / "cluster" / file).read_text(), file
