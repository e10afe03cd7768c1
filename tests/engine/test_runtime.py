"""The Ray that every verb gets: quiet, private, started once."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.data

from cryoray.engine import runtime
from cryoray.errors import SettingsError
from cryoray.settings import RuntimeSettings


@ray.remote
def noisy() -> str:
    warnings.warn("a worker warns", stacklevel=1)
    print("a worker talks")
    return os.environ["RAY_USAGE_STATS_ENABLED"]


class Adder:
    """What an actor pool runs; Ray's core complains about every such pool that has arguments."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        print("an actor talks")
        return {"id": batch["id"] + self.number}


@pytest.mark.ray
def test_connect_twice_keeps_the_first_ray(ray_cluster: RuntimeSettings) -> None:
    node = ray.get_runtime_context().get_node_id()
    runtime.connect(RuntimeSettings(cpus=32))
    assert ray.get_runtime_context().get_node_id() == node
    assert ray.cluster_resources()["CPU"] == 4


@pytest.mark.ray
def test_the_token_is_for_its_owner_alone(ray_cluster: RuntimeSettings) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.ray
def test_nothing_reaches_the_terminal(
    ray_cluster: RuntimeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ray.get(noisy.remote()) == "0"
    numbers = ray.data.range(10, override_num_blocks=1).map_batches(
        Adder, fn_constructor_args=(1,), compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5
    )
    assert numbers.sum("id") == 55
    assert capfd.readouterr() == ("", "")


@pytest.mark.ray
def test_ragged_images_fail_instead_of_becoming_objects(ray_cluster: RuntimeSettings) -> None:
    assert not ray.data.DataContext.get_current().enable_fallback_to_arrow_object_ext_type


def test_a_token_that_others_could_read_is_tightened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    runtime._private_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == "secret"


def test_an_address_where_nothing_answers_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SettingsError, match=r"no Ray at 127\.0\.0\.1:1"):
        runtime.connect(RuntimeSettings(address="127.0.0.1:1"))


def test_a_head_that_is_too_busy_to_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def init(address: str, **_: object) -> None:
        asked.append(address)
        if len(asked) < 3:
            raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(runtime, "data_context", lambda: None)
    monkeypatch.setattr(runtime, "_watch", lambda _: None)
    with socket.create_server((runtime.LOCALHOST, 0)) as head:
        address = f"{runtime.LOCALHOST}:{head.getsockname()[1]}"
        runtime.connect(RuntimeSettings(address=address))
        assert asked == [address] * 3
        monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("no")))
        with pytest.raises(SettingsError, match=f"no Ray at {address}"):
            runtime.connect(RuntimeSettings(address=address))


_HEAD = """
import socket, sys, threading, time, ray
from cryoray.engine import runtime
ray.is_initialized = lambda: True
head = socket.create_server((runtime.LOCALHOST, 0))
address = f"{runtime.LOCALHOST}:{head.getsockname()[1]}"
runtime._watch(address)
time.sleep(2.5)  # it is there for longer than it may be away
print("there", flush=True)
head.close()
if sys.argv[1] == "back":
    time.sleep(0.5)
    head = socket.create_server((runtime.LOCALHOST, int(address.rpartition(":")[2])))
if sys.argv[1] == "left":
    runtime._left.set()
time.sleep(4)
print("still here")
"""


@pytest.mark.long
@pytest.mark.parametrize(("head", "code"), [("gone", 2), ("back", 0), ("left", 0)])
def test_a_head_is_missed_when_it_stays_away_and_only_then(head: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HEAD, head],
        env={**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "2"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("there")
    assert ("still here" in done.stdout) == (code == 0)
    assert ("has been away for" in done.stderr) == (code == 2)
    assert "Traceback" not in done.stderr


def test_a_dashboards_port_that_is_taken_gives_way_to_the_next() -> None:
    with socket.create_server((runtime.LOCALHOST, 0)) as taken:
        port = taken.getsockname()[1]
        found = runtime._dashboard_port(port)
        assert found is not None
        assert port < found < port + 100
    assert runtime._dashboard_port(port) == port
    assert runtime._dashboard_port(8265) is None  # Ray's default, from which it looks by itself


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        # As Ray 2.60 raises them, word for word.
        (
            Exception(
                "The current node timed out during startup. This could happen because some of the raylet "
                "failed to startup or the GCS has become overloaded."
            ),
            "its processes did not start in time; .* RAY_raylet_start_wait_time_s",
        ),
        (
            Exception(
                "Failed to start the dashboard \nThe last 20 lines of dashboard.log:\n  File x\n"
                "OSError: AF_UNIX path too long"
            ),
            "Failed to start the dashboard OSError: AF_UNIX path too long",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_not_our_fault(
    raised: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(**_: object) -> None:
        raise raised

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SettingsError, match=f"a local Ray could not start: {sentence}"):
        runtime.connect(RuntimeSettings())


def test_a_home_in_which_nothing_can_be_written_names_the_variable_that_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/proc/1/nothing")
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=r"cannot be written .* set RAY_AUTH_TOKEN_PATH"):
        runtime._private_token()


@pytest.mark.ray
def test_ray_starts_where_the_folder_of_temporary_files_has_a_long_name(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * 90)
    longest.mkdir()
    code = (
        "from cryoray.engine import runtime; from cryoray.settings import RuntimeSettings as S; import os\n"
        "runtime.connect(S(cpus=4, gpus=0, object_store_mib=128)); print(os.environ['TMPDIR'])"
    )
    environment = {**os.environ, "TMPDIR": str(longest), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "t")}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(longest)), done.stderr


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a path that is short enough for Ray."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        monkeypatch.setattr(runtime, "_LONGEST_TEMP", len(folder))
        yield Path(folder)


@pytest.mark.ray
def test_what_ray_opens_to_everybody_lies_where_nobody_else_may_enter(
    ray_cluster: RuntimeSettings,
) -> None:
    inside = Path(ray._private.worker._global_node.get_temp_dir_path())
    parent = inside.parent
    assert parent.name == f"cryoray.{os.getuid()}"
    assert stat.S_IMODE(parent.stat().st_mode) == 0o700
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert session.is_relative_to(inside)
    for socket_file in session.rglob("sockets/*"):
        assert len(bytes(socket_file)) <= 107


def test_a_folder_that_others_could_enter_is_closed_and_begun_anew(temporary: Path) -> None:
    first = runtime._temp_folder()
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert runtime._temp_folder() == first
    first.parent.chmod(0o777)
    (first / "logs").symlink_to("/etc")  # as a neighbour would lay it
    second = runtime._temp_folder()
    assert second != first
    assert list(second.iterdir()) == []
    assert stat.S_IMODE(second.parent.stat().st_mode) == 0o700


def test_a_folder_that_is_a_link_is_refused(temporary: Path) -> None:
    (temporary / "theirs").mkdir()
    (temporary / f"cryoray.{os.getuid()}").symlink_to(temporary / "theirs")
    with pytest.raises(SettingsError, match="belongs to somebody else"):
        runtime._temp_folder()


def test_a_folder_that_was_opened_while_ray_started_is_noticed(temporary: Path) -> None:
    inside = runtime._temp_folder()
    runtime._check_closed(inside)
    inside.parent.chmod(0o777)
    with pytest.raises(SettingsError, match="was opened to other users"):
        runtime._check_closed(inside)


def test_sessions_whose_process_is_gone_are_swept(temporary: Path) -> None:
    inside = runtime._temp_folder()
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    earlier = temporary / f"cryoray-{os.getuid()}"
    gone = [folder / f"session_2026-01-01_1_{int(dead.stdout)}" for folder in (inside, earlier)]
    alive = inside / f"session_2026-01-01_2_{os.getpid()}"
    fresh = inside / f"session_2026-01-01_3_{int(dead.stdout)}"
    for folder in (*gone, alive, fresh):
        (folder / "logs").mkdir(parents=True)
        if folder is not fresh:
            os.utime(folder, (0, 0))
    (inside / "session_latest").symlink_to(alive)
    assert runtime._temp_folder() == inside
    assert {one.name for one in inside.iterdir()} == {alive.name, fresh.name, "session_latest"}
    assert not gone[1].exists()
