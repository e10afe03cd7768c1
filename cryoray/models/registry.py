"""Ensembles by name: ``ROOT/NAME/DIGEST/…``, and ``ROOT/NAME/active``, which holds one digest.

Where a name is not in the registry, it may be that of an ensemble that ships with cryoray: a kind,
``particle`` or ``class2d``. So promoting an ensemble under a kind makes it the one that is used where none
is named.

``ROOT/NAME/history.jsonl`` has one line for each time that another became active. Everything appears by
rename, and whoever changes a name holds its lock, so that a service which reads `active` meanwhile finds a
whole ensemble, old or new.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cryoray.errors import EnsembleError, SettingsError
from cryoray.formats.files import replacing
from cryoray.formats.opening import way_out
from cryoray.models.ensemble import MANIFEST, Ensemble

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

#: The ensembles that ship with cryoray, each in a folder named as its kind.
SHIPPED = Path(__file__).parents[1] / "ensembles"

#: What is judged by an ensemble of another kind, where there is none of its own.
_STAND_IN = {"class3d": "class2d"}


class Change(BaseModel):
    """A line of `history.jsonl`: which ensemble became active when, instead of which, and why.

    ``found`` is written in place of a line that a crash prevented, or for an `active` that something
    else wrote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    change: Literal["promoted", "rolled back", "found"]
    digest: str
    instead_of: str | None
    reason: str = ""


def shipped(kind: str, root: Path = SHIPPED) -> Path | None:
    """The folder of the ensemble of this kind that ships with cryoray; None where none does."""
    return root / kind if kind and (root / kind / MANIFEST).is_file() else None


def default(kind: str, registry: Path, root: Path = SHIPPED) -> Path | None:
    """The folder of the ensemble that judges images of a kind where none is named.

    It is the one that is active in the registry under the kind's name, else the one that ships in
    ``root``; None where there is neither. For 3D classes one that is active for 2D classes comes before
    what ships, and what ships for 2D classes last.

    Raises:
        EnsembleError: the registry's file holds no digest.
    """
    kinds = [kind, *([_STAND_IN[kind]] if kind in _STAND_IN else [])]
    for one in kinds:
        if digest := active(registry, one):
            return registry / one / digest
    return next((found for one in kinds if (found := shipped(one, root))), None)


def resolve(
    ensemble: str | Path | None, registry: Path, kind: str = "particle", root: Path = SHIPPED
) -> Path:
    """The folder of an ensemble given as a folder, by its name in the registry, or not at all.

    Args:
        ensemble: folder, or name in the registry or of one that ships; None: the default.
        registry: its folder.
        kind: whose default is taken.
        root: of the ensembles that ship.

    Raises:
        EnsembleError: there is no such ensemble, or no default.
    """
    if ensemble is None:
        if found := default(kind, registry, root):
            return found
        raise EnsembleError(
            f"no ensemble is named, and there is none for {kind} images: {registry} has none of this name, "
            "and none ships with this cryoray",
            remedy="give --ensemble NAME or DIR, or `cryoray promote` one under that name",
        )
    folder = Path(ensemble).expanduser().absolute()
    if (folder / MANIFEST).is_file():
        return folder
    if _NAME.fullmatch(str(ensemble)) and (digest := active(registry, str(ensemble))):
        return registry / str(ensemble) / digest
    if _NAME.fullmatch(str(ensemble)) and (found := shipped(str(ensemble), root)):
        return found
    remedy = f"train one with `cryoray train`, or see what {registry} holds"
    if not folder.exists() and "/" in str(ensemble):
        remedy = f"{way_out(folder)}; {remedy}"
    raise EnsembleError(
        "there is no such ensemble, neither a folder with an ensemble.json nor a name in the registry",
        file=ensemble,
        remedy=remedy,
    )


def active(registry: Path, name: str) -> str | None:
    """The digest that is active under a name, None where nothing is.

    Raises:
        EnsembleError: the file holds no digest.
    """
    file = registry / name / "active"
    try:
        digest = file.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        digest = ""
    if not _DIGEST.fullmatch(digest):
        raise EnsembleError(
            "holds no digest of an ensemble", file=file, remedy="promote one under this name again"
        )
    return digest


def history(registry: Path, name: str) -> list[Change]:
    """What became active under a name, oldest first.

    Raises:
        EnsembleError: a line of the file is not readable.
    """
    file = registry / name / "history.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    try:
        return [Change.model_validate_json(line) for line in lines if line]
    except ValidationError as error:
        raise EnsembleError(
            "a line of this history is not readable", file=file, remedy="remove the line"
        ) from error


def install(ensemble: Path, registry: Path, name: str) -> str:
    """Copy an ensemble's folder into the registry, without making it active; returns its digest.

    Raises:
        EnsembleError: it is damaged, or none.
        SettingsError: the name cannot be one of a folder.
    """
    _check(name)
    digest = Ensemble.load(ensemble).digest
    place = registry / name / digest
    if place.is_dir() and _whole(place):
        return digest
    place.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}.", dir=place.parent))
    try:
        shutil.copytree(ensemble, copy / digest)
        if Ensemble.load(copy / digest).digest != digest:
            raise EnsembleError("changed while it was copied", file=ensemble, remedy="try again")
        with _locked(registry, name):
            # Another may have installed the same meanwhile, and use it: only a damaged one gives way.
            if not _whole(place):
                if place.exists():
                    place.rename(copy / "damaged")
                (copy / digest).rename(place)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return digest


def promote(ensemble: Path, registry: Path, name: str, *, reason: str = "") -> Change:
    """Install an ensemble and make it the active one; a running service takes it up by itself.

    Raises:
        EnsembleError: it is damaged, or of another kind than the one that is active.
        SettingsError: the name cannot be one of a folder.
    """
    digest = install(ensemble, registry, name)
    with _locked(registry, name):
        before = active(registry, name)
        if before is not None and _whole(registry / name / before):
            Ensemble.load(registry / name / digest).check_kind(
                Ensemble.load(registry / name / before).kind, registry / name
            )
        return _activate(registry, name, digest, "promoted", reason)


def rollback(
    registry: Path, name: str, *, instead_of: str | None = None, reason: str = ""
) -> Change | None:
    """Make the ensemble active again that was so before the active one.

    Args:
        registry: the registry's folder.
        name: in it.
        instead_of: do so only while this digest is active; None: whichever is.
        reason: for the history.

    Returns:
        what was changed; None where another digest than ``instead_of`` is active by now.

    Raises:
        EnsembleError: there is no such name, or nothing was active before.
    """
    _check(name)
    if not (registry / name).is_dir():
        raise EnsembleError(
            "there is no such name in the registry",
            file=registry / name,
            remedy="promote an ensemble under it with `cryoray promote ENSEMBLE --as NAME`",
        )
    with _locked(registry, name):
        stack = _reconciled(registry, name)
        if instead_of is not None and stack[-1:] != [instead_of]:
            return None
        if len(stack) < 2:
            raise EnsembleError(
                "nothing was active under this name before",
                file=registry / name,
                remedy="promote another ensemble instead",
            )
        return _activate(registry, name, stack[-2], "rolled back", reason)


def _activate(
    registry: Path,
    name: str,
    digest: str,
    change: Literal["promoted", "rolled back"],
    reason: str,
) -> Change:
    """Replace `active`, then write it down: a line that is missing after a crash can be told."""
    stack = _reconciled(registry, name)
    made = Change(
        time=_now(),
        change=change,
        digest=digest,
        instead_of=stack[-1] if stack else None,
        reason=reason,
    )
    if stack[-1:] == [digest]:
        return made
    with replacing(registry / name / "active") as temporary:
        temporary.write_text(digest + "\n", encoding="utf-8")
    _write_down(registry, name, made)
    return made


def _reconciled(registry: Path, name: str) -> list[str]:
    """The digests that were active one after the other and not rolled back; the last one is."""
    stack: list[str] = []
    for line in history(registry, name):
        if line.change == "rolled back":
            stack.pop()
        elif stack[-1:] != [line.digest]:
            stack.append(line.digest)
    now, before = active(registry, name), stack[-1] if stack else None
    if now is None or now == before:
        return stack
    if stack[-2:-1] == [now]:
        found = Change(time=_now(), change="rolled back", digest=now, instead_of=before)
        stack.pop()
    else:
        found = Change(time=_now(), change="found", digest=now, instead_of=before)
        stack.append(now)
    _write_down(registry, name, found)
    return stack


def _write_down(registry: Path, name: str, change: Change) -> None:
    line = json.dumps(change.model_dump(mode="json"), ensure_ascii=False) + "\n"
    with (registry / name / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _whole(place: Path) -> bool:
    try:
        return Ensemble.load(place).digest == place.name
    except EnsembleError:
        return False


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} is not a name for an ensemble", remedy="use letters, digits, dots, - and _"
        )


@contextmanager
def _locked(registry: Path, name: str) -> Iterator[None]:
    """While nobody else changes this name."""
    folder = registry / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
