"""What ``cryoray doctor`` looks at on this machine: packages, cores, memory, disks, ensembles, tokens."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cryoray.diagnostics.finding import Finding

if TYPE_CHECKING:
    from cryoray.records import Kind
    from cryoray.settings import Settings

_GIB = 2**30

#: The variables that name the files of tokens, where they are not in the home folder.
_RAY_FILE, _SERVICE_FILE = "RAY_AUTH_TOKEN_PATH", "CRYORAY_TOKEN_FILE"


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything that is looked at, in the order in which it is shown."""
    yield Finding("Python", ".".join(map(str, sys.version_info[:3])))
    yield _package("torch")
    yield _package("ray", extra="train")
    yield _package("prefect", extra="flows")
    yield _cores()
    yield _memory()
    yield _shared_memory(settings.runtime.object_store_mib * 2**20)
    yield _gpu()
    for name, folder in (
        ("working directory", Path.cwd()),
        ("registry", settings.registry),
        ("temporary files", Path(tempfile.gettempdir())),
    ):
        yield _writable(name, folder)
    yield _home()
    from cryoray.records import KINDS

    for kind in KINDS:
        yield _ensemble(kind, settings.registry)
    for ledger in (settings.serve.ledger, settings.watch.ledger):
        if ledger is not None:
            yield _ledger(ledger)
    from cryoray.protocol.token import token_file

    ray = Path(os.environ.get(_RAY_FILE, "~/.ray/auth_token")).expanduser()
    yield _token("token of the service", token_file(), "CRYORAY_TOKEN", _SERVICE_FILE)
    yield _token("token of Ray", ray, "RAY_AUTH_TOKEN", _RAY_FILE)


def _package(name: str, extra: str = "") -> Finding:
    """A package counts as there when it can be imported, not when its name is listed."""
    if extra and find_spec(name) is None:
        remedy = f"pip install 'cryoray[{extra}]', where this machine shall do what needs it"
        return Finding(name, "not installed", "warning", remedy)
    try:
        import_module(name)
        return Finding(name, version(name))
    except (ImportError, OSError, PackageNotFoundError) as error:
        return Finding(name, f"cannot be imported: {error}", "bad", "make clean install")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    if cores >= 2:
        return Finding("cores", str(cores))
    return Finding("cores", str(cores), "warning", "give it two or more; Ray will share this one")


def _memory() -> Finding:
    """Memory that is free here: of the machine, or of the container where that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    bound, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if bound.is_file() and (limit := bound.read_text().strip()).isdigit():
        free = min(free, int(limit) - int(used.read_text()))
    found = f"{free / _GIB:.1f} GiB free"
    if free >= 6 * _GIB:
        return Finding("memory", found)
    return Finding(
        "memory", found, "warning", "training on many images wants 6 GiB; close other programs"
    )


def _shared_memory(wanted: int) -> Finding:
    """Ray keeps its objects in /dev/shm, and falls back to a slow disk where that is too small."""
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.is_dir() else 0
    found = f"{free / _GIB:.1f} GiB free"
    if free >= wanted:
        return Finding("/dev/shm", found)
    return Finding(
        "/dev/shm",
        found,
        "warning",
        "docker run --shm-size=2g, or a smaller runtime.object_store_mib",
    )


def _gpu() -> Finding:
    try:
        import torch
    except (ImportError, OSError):
        return Finding("GPU", "torch is missing", "warning", "see torch above")
    if not torch.cuda.is_available():
        return Finding("GPU", "none; everything runs on the CPU")
    return Finding(
        "GPU", ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    )


def _writable(name: str, folder: Path) -> Finding:
    """Whether a file can be made there, or where the folder could be made."""
    there, why = _closed(folder)
    if not why:
        return Finding(name, str(folder))
    return Finding(name, f"{folder}: {why}", "bad", f"make {there} writable or choose another")


def _closed(folder: Path) -> tuple[Path, str]:
    """The folder, or that in which it would have to be made; and why no file can be made there, if so."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return there, ""
    except OSError as error:
        return there, error.strerror or str(error)


def _home() -> Finding:
    """Ray and the service keep their tokens there, unless variables name other files."""
    home, name = Path.home(), "home folder"
    _, why = _closed(home)
    if not why:
        return Finding(name, str(home))
    needed = [file for file in (_RAY_FILE, _SERVICE_FILE) if file not in os.environ]
    if not needed:
        remedy = f"nothing to do for tokens: {_RAY_FILE} and {_SERVICE_FILE} name other files"
        return Finding(name, f"{home}: {why}", "warning", remedy)
    return Finding(
        name,
        f"{home}: {why}",
        "bad",
        f"set {' and '.join(needed)} to {'files' if needed[1:] else 'a file'} in a folder of yours,"
        " or HOME to another folder",
    )


def _ensemble(kind: Kind, registry: Path) -> Finding:
    """Which ensemble judges a kind where none is named, and whether its files are whole."""
    from cryoray.errors import EnsembleError

    name = f"ensemble for {kind}"
    try:
        from cryoray.models.ensemble import Ensemble
        from cryoray.models.registry import default, shipped
    except (ImportError, OSError):
        return Finding(name, "cannot be looked at", "bad", "see torch above")
    try:
        path = default(kind, registry)
        if path is None:
            return Finding(name, "none", "warning", "train one, and give --ensemble")
        digest = Ensemble.load(path).digest[:12]
    except EnsembleError as error:
        return Finding(name, str(error), "bad", "install cryoray again, or promote another")
    whose = "ships with cryoray" if path == shipped(kind) else "active in the registry"
    return Finding(name, f"{digest}, {whose}")


#: File systems of networks, on which another machine's locks are not seen for certain.
_NETWORKS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs")


def _ledger(given: str) -> Finding:
    """A ledger in a file serves one machine; whether it can be opened at all."""
    from cryoray.errors import SettingsError
    from cryoray.session.ledger import Ledger

    name = "ledger of sessions"
    try:
        ledger = Ledger(given)
        ledger.check_host()
    except SettingsError as error:
        return Finding(name, error.what, "bad", error.remedy or "")
    shown, file = ledger.url.render_as_string(), ledger.url.database or ""
    kind = _file_system(Path(file)) if ledger.is_sqlite else ""
    ledger.close()
    if kind.startswith(_NETWORKS):
        return Finding(
            name,
            f"{shown} is on {kind}",
            "warning",
            "page and watcher must be on one machine, or use postgresql://…",
        )
    return Finding(name, shown)


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, '' where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    above = [fields for fields in mounts if path.resolve().is_relative_to(fields[1])]
    return max(above, key=lambda fields: len(fields[1]))[2] if above else ""


def _token(name: str, file: Path, given: str, variable: str) -> Finding:
    """Who can read a token can use what it guards; one that is missing is made at first start.

    Args:
        name: of the finding.
        file: that holds the token.
        given: the variable that holds the token itself, where it is set.
        variable: the one that names the file.
    """
    if os.environ.get(given):
        return Finding(name, f"in {given}")
    if not file.is_file():
        _, why = _closed(file.parent)
        if why:
            remedy = f"set {variable} to a file in a folder of yours"
            return Finding(name, f"cannot be made in {file}: {why}", "bad", remedy)
        return Finding(name, "none yet; made at first start")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return Finding(name, f"{file} has mode {mode:04o}", "bad", f"chmod 600 {file}")
    return Finding(name, f"{file}, mode {mode:04o}")
