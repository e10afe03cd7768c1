"""Ray, started or joined: nobody else does either, so every verb gets the same quiet, private Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from cryoray.errors import SettingsError
from cryoray.settings import RuntimeSettings

LOCALHOST = "127.0.0.1"

#: The path of a Unix socket ends after 107 bytes, and Ray's own part of it takes about 75.
_LONGEST_TEMP = 12
#: The same for what multiprocessing of Python adds: ``/pymp-xxxxxxxx/listener-xxxxxxxx``.
_LONGEST_TMPDIR = 70
#: A session's folder that was not touched for so long, and whose process is gone, is nobody's.
_LEFT_SECONDS = 60.0

#: Names the seconds after which Ray's core ends a process whose head is away; we do so somewhat before.
_RAY_PATIENCE, _WE_GIVE_UP = "RAY_gcs_rpc_server_reconnect_timeout_s", 0.8

_dashboard: str | None = None
_left = threading.Event()
_switched_auth_on = False


def connect(settings: RuntimeSettings) -> None:
    """Join the Ray at ``settings.address`` (or ``RAY_ADDRESS``), else start one on this machine.

    Does nothing where this process has a Ray already. A local Ray listens on 127.0.0.1 alone, wants
    a token that only this user can read (``RAY_AUTH_TOKEN_PATH``, default ``~/.ray/auth_token``),
    and writes its logs to files, never to the terminal.

    Raises:
        SettingsError: no Ray answers at the address, or a local one cannot be had as asked for.
    """
    global _dashboard, _switched_auth_on
    if ray.is_initialized():
        return
    _switched_auth_on = "RAY_AUTH_MODE" not in os.environ
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"{address} takes jobs and is not a Ray cluster to join",
            remedy="give HEAD:6379, or run the flow in place of the command",
        )
    try:
        with _silent_core():
            _dashboard = _start(settings) if address == "local" else _join(address)
    except SettingsError:
        raise
    # Ray raises plain exceptions, too, where one of its processes did not start in time.
    except Exception as error:
        what = "a local Ray could not start" if address == "local" else f"no Ray at {address}"
        why, remedy = _explained(error)
        raise SettingsError(f"{what}: {why}", remedy=remedy) from error
    data_context()


def _explained(error: BaseException) -> tuple[str, str]:
    """Why Ray did not start, in one line, and what helps."""
    text = str(error).strip()
    if "timed out" in text or "not be accessible" in text:
        return (
            "its processes did not start in time",
            "try again when this machine is less busy, or give them longer:"
            " RAY_raylet_start_wait_time_s=120",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    # Of a process that failed Ray quotes the end of its log; what went wrong stands last.
    first = lines[0] if len(lines) < 3 else f"{lines[0]} {lines[-1]}"
    return first[:400].rstrip("."), "see the settings under [runtime], or set RAY_ADDRESS"


def _start(settings: RuntimeSettings) -> str | None:
    _private_token()
    folder = _temp_folder()
    with _short_temporary_files(folder):
        started = _init(settings, folder)
    try:
        _check_closed(folder)
    except SettingsError:
        ray.shutdown()
        raise
    return f"http://{started.dashboard_url}" if started.dashboard_url else None


def _init(settings: RuntimeSettings, folder: Path) -> Any:
    return ray.init(
        address="local",
        # Logical CPUs are only numbers; with fewer than four, a reader and a pool of judges can
        # wait for each other for ever.
        num_cpus=settings.cpus or max(4, os.cpu_count() or 1),
        num_gpus=settings.gpus,
        object_store_memory=settings.object_store_mib << 20,
        include_dashboard=settings.dashboard,
        dashboard_host=LOCALHOST,
        dashboard_port=_dashboard_port(settings.dashboard_port),
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
    )


@contextlib.contextmanager
def _short_temporary_files(folder: Path) -> Iterator[None]:
    """Have the processes of Ray use ``folder`` for temporary files where TMPDIR is too long for sockets.

    Python's multiprocessing, which Ray's dashboard uses, binds sockets below TMPDIR.
    """
    given = os.environ.get("TMPDIR")
    if given is None or len(given) <= _LONGEST_TMPDIR:
        yield
        return
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        os.environ["TMPDIR"] = given


def _dashboard_port(first: int) -> int | None:
    """The first free port from ``first`` on; from its own default Ray looks further by itself."""
    if first == RuntimeSettings.model_fields["dashboard_port"].default:
        return None
    for port in range(first, min(first + 100, 65536)):
        with contextlib.suppress(OSError), socket.create_server((LOCALHOST, port)) as free:
            return int(free.getsockname()[1])
    raise OSError(f"no free port for the dashboard from {first} on")


def _join(address: str) -> str | None:
    """Join the Ray at an address. A head that is busy may not answer in the five seconds Ray gives it."""
    for tries_left in (2, 1, 0):
        _knock(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError:
            if not tries_left or address == "auto":
                raise
        else:
            break
    _watch(ray.get_runtime_context().gcs_address if address == "auto" else address)
    return None


def _watch(head: str) -> None:
    """Have a thread look after the head of the Ray that was joined, until it is left."""
    global _left
    _left.set()
    _left = threading.Event()
    threading.Thread(target=_miss, args=(head, _left), name="head of Ray", daemon=True).start()


def _miss(head: str, left: threading.Event) -> None:
    """End this process with a sentence where the head is gone: else Ray's core would end it with none.

    A head that comes back before (it finds its state in Redis) is not missed. Nothing half-done is
    visible, whenever a process ends.
    """
    patience = _WE_GIVE_UP * float(os.environ.get(_RAY_PATIENCE, 60))
    seen = time.monotonic()
    while not left.wait(1.0) and ray.is_initialized():
        try:
            _knock(head, timeout=2.0)
        except OSError:
            away = time.monotonic() - seen
            if away < patience:
                continue
            sys.stderr.write(
                f"\nThe head of Ray at {head} has been away for {away:.0f} s; start it again, then give the"
                " same command again.\n"
            )
            sys.stderr.flush()
            os._exit(2)
        seen = time.monotonic()


@contextlib.contextmanager
def _silent_core() -> Iterator[None]:
    """Keep the C++ core of this process off the terminal, where it calls harmless things errors.

    It reads the variable from C when it starts, and says so on stderr, which is closed meanwhile.
    `os.putenv` hides the variable from ``os.environ``, which the processes of a local Ray get: their
    logs stay whole.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    stderr = os.dup(2)
    os.putenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.unsetenv("RAY_BACKEND_LOG_LEVEL")
        os.dup2(stderr, 2)
        os.close(stderr)


def disconnect() -> None:
    """Leave the Ray of this process, and stop it where ``connect`` started it."""
    _left.set()
    ray.shutdown()
    if _switched_auth_on:  # by ray.init, for this process and whatever it starts later
        os.environ.pop("RAY_AUTH_MODE", None)


def dashboard() -> str | None:
    """URL of the dashboard of the local Ray that ``connect`` started; None without one."""
    return _dashboard if ray.is_initialized() else None


def processors(gpu: bool) -> int:
    """How much is trained side by side where nobody says: on the Ray's GPUs, or on this machine's cores."""
    there = int(ray.cluster_resources().get("GPU", 0)) if gpu else os.cpu_count() or 1
    return max(1, there)


def data_context() -> None:
    """All that cryoray asks of Ray Data otherwise than by default, and why.

    What is said to the terminal is said by the verbs; Ray's log file in the session's folder still
    gets everything. How much a task reads is the plan's business (`preparation.plan.grouped`), and the
    number of tasks the datasource's, so Ray's sizes of blocks never come into play.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ragged images would otherwise travel as pickled Python objects, slowly and without a word.
    context.enable_fallback_to_arrow_object_ext_type = False
    # Rows are put in order by their numbers: a worker need not wait for one that is slower.
    context.execution_options.preserve_order = False
    # A block that may be lost is rows that vanish: what cannot be read is quarantined by the reader.
    context.max_errored_blocks = 0
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def token_file() -> Path:
    """Where the token is that a local Ray and its dashboard want."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def _private_token() -> None:
    """Make the token that a local Ray wants, for its owner alone; Ray itself would make it 0644."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return
    path = token_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.touch(0o600, exist_ok=False)
            path.write_text(secrets.token_hex(32))
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
    except OSError as error:
        raise SettingsError(
            f"the token that a local Ray wants cannot be written ({error.strerror})",
            file=path,
            remedy="set RAY_AUTH_TOKEN_PATH to a file in a folder of yours",
        ) from error


def _knock(address: str, timeout: float = 10.0) -> None:
    """Raise OSError in seconds where Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout).close()


def _temp_folder() -> Path:
    """A folder of this user's own for Ray's sessions; on a shared machine /tmp/ray collides.

    Ray opens to everybody what it makes, so it makes it inside a folder that nobody else may enter.
    """
    base = tempfile.gettempdir()
    base = base if len(base) <= _LONGEST_TEMP else "/tmp"
    parent = Path(base) / f"cryoray.{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    status = parent.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise SettingsError(
            "belongs to somebody else", file=parent, remedy="set TMPDIR to a folder of yours"
        )
    inside = parent / "r"
    if stat.S_IMODE(status.st_mode) != 0o700:
        # Whoever could enter may have laid links there, which Ray would follow: begin anew.
        parent.chmod(0o700)
        inside = parent / f"r{secrets.token_hex(1)}"
        _remove(inside)
    inside.mkdir(mode=0o700, exist_ok=True)
    earlier = Path(base) / f"cryoray-{os.getuid()}"  # where sessions were until version 0.1
    for folder in (earlier, *parent.glob("r*")):
        if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            _sweep(folder)
    return inside


def _check_closed(folder: Path) -> None:
    """Raise where the folder around Ray's own is open to others, whoever opened it."""
    status = folder.parent.lstat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise SettingsError(
            "was opened to other users while Ray started",
            file=folder.parent,
            remedy="remove it, and find out who did that",
        )


def _sweep(folder: Path) -> None:
    """Remove what Ray's sessions left whose process is no more."""
    for session in folder.glob("session_*_*"):
        process = session.name.rpartition("_")[2]
        if session.is_symlink() or not process.isdecimal() or Path(f"/proc/{process}").exists():
            continue
        with contextlib.suppress(OSError):
            # A Ray whose driver was killed needs moments to end.
            if time.time() - session.lstat().st_mtime > _LEFT_SECONDS:
                _remove(session)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
