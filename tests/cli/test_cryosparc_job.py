"""An External job of cryoSPARC, by cryosparc-tools itself against a server that speaks its API."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cryosparc.dataset import Dataset

from cryoray.cli import cryosparc_job
from cryoray.settings import RuntimeSettings
from tests.cli.cryosparc_server import EMAIL, Server
from tests.formats.files import write_cs_job, write_stack


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Forty particles; the images of the last three are not there."""
    project = tmp_path / "CS-project"
    table = write_cs_job(project, 40)
    particles = Dataset.load(table)
    write_stack(project / "J19/extract/a.mrc", 37, side=32)
    rng = np.random.default_rng(0)
    with (project / "J19/extract/a.mrc").open("r+b") as file:
        file.seek(1024)
        file.write(rng.normal(size=(37, 32, 32)).astype("<f4").tobytes())
    monkeypatch.setenv("CRYOSPARC_EMAIL", EMAIL)
    with Server(project, particles).running() as running:
        yield running


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    # cryosparc-tools reads its variables when it is imported.
    from cryosparc import tools

    kept = dict(tools.CryoSPARC.__init__.__kwdefaults__)
    monkeypatch.setattr(
        tools.CryoSPARC.__init__,
        "__kwdefaults__",
        kept | {"email": EMAIL, "password": "a password"},
    )
    monkeypatch.setattr(sys, "argv", ["cryoray-cryosparc", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cryosparc_job.main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.ray
def test_every_particle_comes_back_in_one_output(
    server: Server,
    tiny_ensemble: Path,
    ray_cluster: RuntimeSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CRYORAY_CLASSIFY__MAX_QUARANTINED", "0.5")
    words = ("P1", "W1", "J1", "--server", server.url, "--ensemble", tiny_ensemble)
    assert run(monkeypatch, *words) == 0, capsys.readouterr().err
    job = server.jobs["J2"]
    assert (job.spec.type, job.status, job.title) == ("snowflake", "completed", cryosparc_job.TITLE)
    sides = {name: data for (uid, name), data in server.saved.items() if uid == "J2"}
    assert all(len(data) for data in sides.values())  # no output without particles
    everything = np.concatenate([data["uid"] for data in sides.values()])
    given = server.saved["J1", "particles"]
    assert sorted(everything.tolist()) == sorted(given["uid"].tolist())
    lost = given["uid"][np.asarray(given["blob/idx"]) >= 37]
    assert sorted(sides["unreadable"]["uid"].tolist()) == sorted(lost.tolist())
    said = pq.read_table(server.project / "J2/cryoray/verdicts.parquet").to_pydict()
    for verdict, (name, _) in cryosparc_job.OUTPUTS.items():
        if verdict:
            wanted = [
                u for u, word in zip(said["uid"], said["verdict"], strict=True) if word == verdict
            ]
            assert sorted(sides[name]["uid"].tolist() if name in sides else []) == sorted(wanted)
    line = capsys.readouterr().out.strip()
    assert line.startswith("P1 J2: 40 rows in = ")
    assert line.endswith("3 unreadable")
    assert server.logged[-1].startswith("cryoray: 40 rows in = ")


def test_a_job_that_fails_is_failed_on_the_server_too(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("P1", "W1", "J1", "--server", server.url, "--ensemble", "nowhere")
    assert run(monkeypatch, *words) == 2
    assert "nowhere" in capsys.readouterr().err
    assert server.jobs["J2"].status == "failed"
    assert "nowhere" in server.logged[-1]


def test_a_project_that_lies_elsewhere_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.project = Path("/on/another/machine")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    assert run(monkeypatch, "P1", "W1", "J1", "--server", server.url) == 2
    assert "run this where the project's folder has the path" in capsys.readouterr().err


def test_without_cryosparc_tools_it_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cryosparc.tools", None)
    monkeypatch.setattr(sys, "argv", ["cryoray-cryosparc", "P1", "W1", "J1"])
    with pytest.raises(SystemExit) as left:
        cryosparc_job.main()
    assert left.value.code == 2
    assert "pip install 'cryosparc-tools" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "P1", "W1", "J1", "--server", "http://127.0.0.1:9") == 2
    assert "Could not connect to CryoSPARC" in capsys.readouterr().err
