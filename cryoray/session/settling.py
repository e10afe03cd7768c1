"""Which files there are and which have settled: polling, since network file systems tell of nothing.

A file has settled when its size and times have not changed for a while, as watched from here, so that
clocks of other machines do not matter. What is listed is cheap: a folder whose time of change is as it
was is not listed again but every ``rescan`` seconds, when everything is looked at, since a file that is
rewritten in place changes no folder. A folder below the root that cannot be read, another user's
perhaps, hides its own files and no others; those that were seen in it before do not count as gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from time import monotonic, time_ns

from cryoray.formats.opening import current

#: What a source, or part of one, is called.
SUFFIXES = (".mrcs", ".star", ".cs")
#: Names that rsync, WinSCP, browsers, editors and programs give to what they have not finished.
_TEMPORARY = re.compile(
    r"^\.|\.(tmp|temp|part|partial|filepart|crdownload|download|downloading)(\.|$)|downloading$|~$",
    re.IGNORECASE,
)
#: A file that has not changed for this long has settled, whoever's clock is right within it.
_OLD_NS = 3600 * 10**9
#: A folder that changed this recently may change again within the same tick of a coarse clock, or
#: while the attributes of a network file system are cached.
_YOUNG_NS = 5 * 10**9
#: So many files do not vanish at once; the disk did.
MANY = 10


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was last seen."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def identity(self) -> tuple[int, int]:
        """What another content would change: rsync's own criterion."""
        return self.size, self.mtime_ns


@dataclass(slots=True)
class _Watched:
    file: File
    since: float
    settled: float | None = None
    missing: float | None = None
    known: bool = False  # whether it ever settled, as it was or is


@dataclass(slots=True)
class _Folder:
    changed: int
    files: set[str]
    folders: list[str]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found.

    Attributes:
        settled: files that have settled since the last look, new or rewritten.
        vanished: files that had settled and are gone.
        away: why nothing could be seen, where that is so: then nothing counts as gone.
        unreadable: folders below the root that cannot be read, and why.
    """

    settled: tuple[File, ...] = ()
    vanished: tuple[str, ...] = ()
    away: str | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Scanner:
    """Looks at a folder again and again.

    Args:
        root: the folder.
        settle: seconds without a change.
        rescan: seconds between looks at everything.
        ignore: patterns of paths below the root (``*`` matches ``/`` too) that are not looked at.
        skip: folders that are not looked at: our own.
        clock: monotonic, seconds.
    """

    root: Path
    settle: float
    rescan: float = 60.0
    ignore: tuple[str, ...] = ()
    skip: tuple[Path, ...] = ()
    clock: Callable[[], float] = monotonic
    _files: dict[str, _Watched] = field(default_factory=dict)
    _folders: dict[str, _Folder] = field(default_factory=dict)
    _unreadable: dict[str, str] = field(default_factory=dict)
    _unsettled: set[str] = field(default_factory=set)
    _looked: float = -1e18
    _outside: dict[str, str] = field(default_factory=dict)  # by real path: the name that counts

    def look(self) -> Look:
        """Look once."""
        now = self.clock()
        full = now - self._looked >= self.rescan
        try:
            if not self.root.is_dir():
                raise NotADirectoryError(f"{self.root} is not there")
            listed = self._walk(full=full, now=now)
        except OSError as error:
            return Look(away=error.strerror or str(error))
        if full:
            self._looked = now
        known = sum(there.known for there in self._files.values())
        if known >= MANY and not listed:
            return Look(away="it is empty, and was not")
        vanished = tuple(self._vanished(listed, now))  # what is missing does not settle
        settled = tuple(self._settled(now))
        return Look(settled, vanished, unreadable=dict(self._unreadable))

    def get(self, path: str) -> File | None:
        """A file that has settled, None for every other."""
        there = self._files.get(path)
        settled = there is not None and there.settled is not None and there.missing is None
        return there.file if there and settled else None

    def is_settled(self, path: str) -> bool:
        """Whether a file that settled is the same at this very moment; else it has to settle anew."""
        self._note_path(path, self.clock())
        return self.get(path) is not None

    @property
    def unsettled(self) -> int:
        """How many files are there that have not settled."""
        return len(self._unsettled)

    def seen_as(self, path: Path) -> str | None:
        """The name under which a file outside the root is seen through a link, None where it is not."""
        name = self._outside.get(os.path.realpath(path)) if self._outside else None
        return name if name is not None and self.is_there(name) else None

    def is_hidden(self, path: str) -> bool:
        """Whether a path lies in a folder that cannot be read now, so that nobody knows of it."""
        return any(path.startswith(f"{folder}/") for folder in self._unreadable)

    @property
    def paths(self) -> list[str]:
        """The files that are there, settled or not."""
        return [path for path, there in self._files.items() if there.missing is None]

    def is_there(self, path: str) -> bool:
        """Whether a file is there, settled or not."""
        there = self._files.get(path)
        return there is not None and there.missing is None

    def _walk(self, *, full: bool, now: float) -> set[str]:
        """All paths of files that are there, after their changes were noted."""
        seen: set[tuple[int, int]] = set()
        listed: set[str] = set()
        waiting = [str(self.root)]
        walked: dict[str, _Folder] = {}
        unreadable: dict[str, str] = {}
        while waiting:
            path = waiting.pop()
            if not current().holds(Path(path)):
                unreadable[path] = (
                    "leads to a folder that this session may not read (--root allows it)"
                )
                continue
            try:
                status = Path(path).stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                folder = self._folders.get(path)
                young = time_ns() - status.st_mtime_ns < _YOUNG_NS
                if folder is None or full or young or folder.changed != status.st_mtime_ns:
                    folder = self._list(path, status.st_mtime_ns, now)
                else:
                    for name in folder.files & self._unsettled:
                        self._note_path(name, now)
            except OSError as error:
                if path == str(self.root):
                    raise
                if not isinstance(error, FileNotFoundError):
                    unreadable[path] = error.strerror or str(error)
                    listed.update(name for name in self._files if name.startswith(f"{path}/"))
                continue
            walked[path] = folder
            listed |= folder.files
            waiting += folder.folders
        self._folders, self._unreadable = walked, unreadable
        return listed

    def _list(self, path: str, changed: int, now: float) -> _Folder:
        files: set[str] = set()
        real: list[str] = []
        links: list[str] = []
        place = os.path.realpath(path)
        with os.scandir(path) as entries:
            # In order, so that of several links to a file it is the same one that counts each time.
            for entry in sorted(entries, key=lambda one: one.name):
                if _TEMPORARY.search(entry.name) or self._ignored(entry.path):
                    continue
                if entry.name.endswith(SUFFIXES):
                    try:
                        if not entry.is_file() or self._is_alias(entry, place):
                            continue
                        self._note(_file(entry.path, entry.stat()), now)
                    except FileNotFoundError:  # gone again, or a link to nothing
                        continue
                    except OSError:  # it is there, and nobody may look at it
                        pass
                    files.add(entry.path)
                elif _is_folder(entry):
                    (links if entry.is_symlink() else real).append(entry.path)
        # RELION's aliases are links to its jobs, which are seen under their own names.
        inside = os.path.realpath(self.root)
        outside = [
            link for link in links if not Path(os.path.realpath(link)).is_relative_to(inside)
        ]
        return _Folder(changed, files, [*outside, *real])

    def _is_alias(self, entry: os.DirEntry[str], place: str) -> bool:
        """Whether a file is seen under another name too, which counts: its rows count once.

        Inside the root it is the file's own name, elsewhere that of the first link that leads there.

        Args:
            entry: the file.
            place: real path of its folder.
        """
        root = os.path.realpath(self.root)
        linked = entry.is_symlink()
        if not linked and Path(place).is_relative_to(root):
            return False
        real = Path(os.path.realpath(entry.path) if linked else Path(place, entry.name))
        if real.is_relative_to(root):
            seen = real.name.endswith(SUFFIXES)
            return seen and not any(self._ignored(str(one)) for one in (real, *real.parents))
        first = self._outside.setdefault(str(real), entry.path)
        if first != entry.path and os.path.realpath(first) != str(real):  # that link is gone
            first = self._outside[str(real)] = entry.path
        return first != entry.path

    def _ignored(self, path: str) -> bool:
        if any(path == str(own) for own in self.skip):
            return True
        below = os.path.relpath(path, self.root)
        return any(fnmatch(below, pattern) for pattern in self.ignore)

    def _note_path(self, path: str, now: float) -> None:
        try:
            self._note(_file(path, Path(path).stat()), now)
        except OSError:
            return

    def _note(self, file: File, now: float) -> None:
        there = self._files.get(file.path)
        if there is None:
            self._files[file.path] = _Watched(file, now)
            self._unsettled.add(file.path)
            return
        there.missing = None
        if there.file.identity != file.identity or (
            there.settled is None and there.file.ctime_ns != file.ctime_ns
        ):
            there.since, there.settled = now, None
            self._unsettled.add(file.path)
        there.file = file

    def _settled(self, now: float) -> Iterator[File]:
        for path in sorted(self._unsettled):
            there = self._files[path]
            if there.missing is not None:
                continue
            last = max(there.file.mtime_ns, there.file.ctime_ns)
            if now - there.since >= self.settle or time_ns() - last > _OLD_NS:
                there.settled, there.known = now, True
                self._unsettled.discard(path)
                yield there.file

    def _vanished(self, listed: set[str], now: float) -> Iterator[str]:
        """Gone for the settle time: a program that replaces a file may remove it first."""
        for path in [path for path in self._files if path not in listed]:
            there = self._files[path]
            if there.missing is None:
                there.missing = now
            if not there.known or now - there.missing >= self.settle:
                del self._files[path]
                self._unsettled.discard(path)
                if there.known:
                    yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where we may not look
        return False


def _file(path: str, status: os.stat_result) -> File:
    return File(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
