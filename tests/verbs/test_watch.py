"""A session on one machine is judged in its own process: no Ray, the same verdicts, the same pages."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from cryoray.errors import SettingsError
from cryoray.session.folder import places
from cryoray.session.watcher import Watcher
from cryoray.settings import ServeSettings, Settings, WatchSettings
from cryoray.verbs.watch import service_of
from tests import examples, without_ray
from tests.serving.test_ports import open_to_all
from tests.session.service import TOKEN, Service, running

pytestmark = pytest.mark.long

QUICK = {"poll": 0.05, "settle": 0.05, "rescan": 0.1, "patience": 0.1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    examples.write_project(made, (12, 9))
    examples.write_stack(made / "alone.mrcs", examples.particles(7))
    (made / "cut.mrcs").write_bytes((made / "alone.mrcs").read_bytes()[:2000])
    return made


def settings_for(ensemble: Path, **serve: object) -> Settings:
    given = {"ensembles": (str(ensemble),), "token": TOKEN, **serve}
    return Settings(
        serve=ServeSettings(**given),
        watch=WatchSettings(**QUICK),
    )


def judged(root: Path, folder: Path, settings: Settings, service: Service | None = None) -> Path:
    """The folder of a session, judged by a service or by this process."""
    watch = settings.watch.model_copy(update={"out": folder})
    if service is not None:
        watcher = Watcher(root, "s", watch, service.client())
        watcher.run(threading.Event(), once=True)
        watcher.close()
        return folder / "s"
    chosen = settings.model_copy(update={"watch": watch})
    with service_of(chosen, places(root, "s", watch)) as client:
        watcher = Watcher(root, "s", watch, client)
        watcher.run(threading.Event(), once=True)
        watcher.close()
    return folder / "s"


def test_no_ray_is_started_nor_imported(
    root: Path, tiny_ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYORAY_TOKEN", TOKEN)
    for name, value in QUICK.items():
        monkeypatch.setenv(f"CRYORAY_WATCH__{name.upper()}", str(value))
    words = ["watch", root, "--session", "s", "--ensemble", tiny_ensemble, "--once"]
    without_ray.cryoray(*words, "--out", tmp_path / "out")
    tables = (tmp_path / "out/s/verdicts").rglob("verdicts.parquet")
    assert sorted(pq.read_metadata(file).num_rows for file in tables) == [7, 9, 12]


def test_verdicts_are_those_of_a_service(root: Path, tiny_ensemble: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ensemble, port=0)
    here = judged(root, tmp_path / "here", settings)
    with running([tmp_path], {"tiny": tiny_ensemble}) as service:
        there = judged(root, tmp_path / "there", settings, service)
    files = [file.relative_to(here) for file in sorted((here / "verdicts").rglob("*.*"))]
    assert sum(file.name == "verdicts.parquet" for file in files) == 3
    for file in files:
        if (here / file).is_file() and file.name != "record.json":  # which has the time
            assert (here / file).read_bytes() == (there / file).read_bytes(), file


def test_pages_and_metrics_are_there_while_it_watches(
    root: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    settings = settings_for(tiny_ensemble, port=0)
    where = places(root, "s", settings.watch)
    with service_of(settings, where) as client:
        watcher = Watcher(root, "s", settings.watch, client)
        watcher.run(threading.Event(), once=True)
        token = watcher.token_file.read_text().strip()
        assert client.healthy()
        assert 'cryoray_images_total{ensemble="tiny"' in httpx.get(f"{client.url}/metrics").text
        with httpx.Client(base_url=client.url, follow_redirects=True) as browser:
            assert browser.get("/", headers={"Accept": "text/html"}).url.path == "/login"
            page = browser.post("/login", data={"token": token, "who": "Ada"})
            assert (page.status_code, page.url.path) == (200, "/sessions/s")
        url = client.url
        watcher.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_two_sessions_have_two_ports_unless_one_was_chosen(root: Path, tiny_ensemble: Path) -> None:
    where = places(root, "s", WatchSettings())
    # Whoever has the usual port, the first of these or another program, the second gets a free one.
    with (
        service_of(settings_for(tiny_ensemble), where) as one,
        service_of(settings_for(tiny_ensemble), where) as two,
    ):
        assert one.url != two.url
        assert one.healthy()
        assert two.healthy()
        port = int(two.url.rpartition(":")[2])
        with (
            pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}"),
            service_of(settings_for(tiny_ensemble, port=port), where),
        ):
            pass


def test_it_listens_at_home_alone_and_ctrl_c_ends_it_in_order(
    root: Path, tiny_ensemble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYORAY_TOKEN", TOKEN)
    monkeypatch.setenv("CRYORAY_SERVE__PORT", "0")
    for name, value in QUICK.items():
        monkeypatch.setenv(f"CRYORAY_WATCH__{name.upper()}", str(value))
    words = ["watch", str(root), "--session", "s", "--ensemble", str(tiny_ensemble)]
    code = "from cryoray.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.decode())
            if "micrograph.judged" in lines[-1]:
                assert open_to_all(process.pid) == []
                process.send_signal(signal.SIGINT)
                break
        lines += process.stdout.read().decode().splitlines()
    assert process.returncode == 0, lines
    assert any("session.closed" in line for line in lines)
    assert not any("Traceback" in line for line in lines), lines
