"""``cryoray watch`` as the person at its terminal sees it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cryoray.cli.main import app
from tests import examples
from tests.session.service import TOKEN, running

pytestmark = pytest.mark.long

WATCH = {"poll": "0.05", "settle": "0.05", "rescan": "0.1", "patience": "0.1"}


def test_each_line_has_a_time_a_short_digest_and_no_control_character(
    tiny_ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples.write_stack(tmp_path / "good.mrcs", examples.particles(4))
    hostile = os.fsdecode(b"clear\x1b[2J\nbell\xff.mrcs")
    examples.write_stack(tmp_path / hostile, examples.particles(4))
    for name, value in WATCH.items():
        monkeypatch.setenv(f"CRYORAY_WATCH__{name.upper()}", value)
    monkeypatch.setenv("CRYORAY_TOKEN", TOKEN)
    with running([tmp_path], {"tiny": tiny_ensemble}) as service:
        arguments = ["watch", str(tmp_path), "--session", "s", "--service", service.url, "--once"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    told = lines[: next(at for at, line in enumerate(lines) if line.startswith("Session"))]
    first, *told = told
    out = tmp_path.resolve() / "cryoray/s"
    assert first == (
        f"Watches {tmp_path.resolve()} and writes into {out}; --out DIR has it write elsewhere."
    )
    said = [line for line in told if not re.match(r"\d\d:", line)]
    assert said == [
        f"The session page: {service.url}/sessions/s",
        f"It asks for the token in {out}/token",
    ]
    told = [line for line in told if line not in said]
    assert all(re.match(r"\d\d:\d\d:\d\d [a-z_]+\.[a-z_]+ .*", line) for line in told), told
    assert any(f"page.ready url={service.url}/ token_file=" in line for line in told)
    (judged,) = [line for line in told if "micrograph.judged" in line]
    assert re.search(r"ensemble=[0-9a-f]{12} ", judged)
    (refused,) = [line for line in told if "control characters" in line or "no UTF-8" in line]
    assert "clear\\x1b[2J\\nbell\\xff.mrcs" in refused
