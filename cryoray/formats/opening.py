"""Opening files: always through here, so that who may read only some folders opens nothing else.

A path that was looked at and found to be allowed may be a link to somewhere else when it is opened. So what
is opened in a scope is opened beneath the descriptor of one of its folders, and no link is followed on the
way: by openat2(2) where the system has it, else by a walk that opens one folder after the other.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from io import FileIO
from pathlib import Path
from typing import TypeVar

from cryoray.errors import FormatError, InputError, nearby

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
#: Of openat2(2), the same on every architecture.
_OPENAT2, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 437, 0x02, 0x04, 0x08
#: What openat2 answers where the kernel, or a container's filter, does not have it.
_ABSENT = (errno.ENOSYS, errno.EPERM, errno.E2BIG, errno.EINVAL)


class OutsideError(InputError):
    """Something lies under none of the folders that may be read."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The folders that may be read.

    Attributes:
        roots: absolute folders whose owner is trusted; (): everything may be read.
        within: folders below them, which need not be trusted; all must lie in one of these; (): anywhere.
    """

    roots: tuple[Path, ...] = ()
    within: tuple[Path, ...] = ()

    def inside(self, *folders: Path) -> Scope:
        """What of this scope lies in one of some folders.

        Args:
            folders: by their real paths. One that has become a link since was laid by whoever may write
                beside it, to have others' files read.

        Raises:
            OutsideError: one of the folders itself does not, or is reached by a link.
        """
        for folder in folders:
            if self._real(folder, folder) != folder:
                raise _outside(folder)
        return replace(self, within=folders)

    def confine(self, path: str | Path) -> Path:
        """The absolute path, once all ``..`` and links were followed to see that it is allowed.

        This says early, and in words, what opening will refuse; by itself it keeps nobody out.

        Args:
            path: a relative one is meant from the first of ``within``, or of the roots, that has it.

        Raises:
            OutsideError: it lies under none of the roots, whether or not anything is there.
        """
        found = Path(path)
        bases = self.within or self.roots
        if bases:
            try:
                candidates = [base / path for base in bases]
                found = next((file for file in candidates if file.exists()), candidates[0])
            except (OSError, ValueError, RuntimeError) as error:
                raise _outside(path) from error
        real = self._real(found, path)
        return real if ".." in found.parts else found

    def holds(self, path: Path) -> bool:
        """Whether a path leads into this scope as far as one can see, whether or not anything is there."""
        if self.roots or self.within:
            try:
                self._real(path, path)
            except OutsideError:
                return False
        return True

    def _real(self, found: Path, given: str | Path) -> Path:
        """The path without any link in it, if it lies in this scope as far as one can see."""
        try:
            real = Path(os.path.realpath(found))
            roots = [Path(os.path.realpath(root)) for root in self.roots]
        except (OSError, ValueError, RuntimeError) as error:  # a null byte, too long a name, a loop
            raise _outside(given) from error
        if roots and not any(real.is_relative_to(root) for root in roots):
            raise _outside(given)
        if self.within and not any(real.is_relative_to(folder) for folder in self.within):
            raise _outside(given)
        return real

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While the block lasts, this thread opens files of this scope alone."""
        token = _scope.set(self)
        try:
            yield
        finally:
            _scope.reset(token)

    def open(self, path: Path) -> int:
        """A descriptor of a file in this scope.

        Raises:
            OutsideError: it lies elsewhere.
            OSError: it cannot be opened.
        """
        if not self.roots:
            return os.open(path, _FLAGS)
        real = self._real(path, path)
        for root in self.roots:
            trusted = Path(os.path.realpath(root))
            if real.is_relative_to(trusted):
                break
        folder = os.open(trusted, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_beneath(folder, real.relative_to(trusted))
        except OSError as error:
            # A link where there was none a moment ago: whoever put it there wants something else read.
            if error.errno in (errno.ELOOP, errno.EXDEV):
                raise _outside(path) from error
            error.filename = str(path)
            raise
        finally:
            os.close(folder)


_EVERYTHING = Scope()
_scope: ContextVar[Scope] = ContextVar("scope", default=_EVERYTHING)


def _outside(path: str | Path) -> OutsideError:
    return OutsideError(
        "lies under none of the folders that this service may read",
        file=path,
        remedy="start the service with --root for its folder",
    )


def current() -> Scope:
    """The scope of this thread."""
    return _scope.get()


def way_out(path: str | Path) -> str:
    """`errors.nearby`, where everything may be read; else nothing of what else is there."""
    return "check the path" if current().roots else nearby(path)


A = TypeVar("A")
R = TypeVar("R")


def in_scope(work: Callable[[A], R]) -> Callable[[A], R]:
    """The same work, in the scope of this thread whichever thread does it."""
    scope = current()

    def scoped(given: A) -> R:
        with scope.reading():
            return work(given)

    return scoped


def open_file(path: Path) -> FileIO:
    """A file, unbuffered, opened without waiting for whoever may write into a pipe.

    Raises:
        OutsideError: it lies outside the scope of this thread.
        FormatError: it is no regular file.
        OSError: it cannot be opened.
    """
    descriptor = current().open(path)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise FormatError("is a pipe or a device, not a file", file=path, remedy="remove it")
        return FileIO(descriptor, closefd=True)
    except BaseException:
        os.close(descriptor)
        raise


def open_beneath(folder: int, path: Path) -> int:
    """A descriptor of a file below a folder's descriptor; no link is followed on the way.

    Args:
        folder: of the folder.
        path: relative, without ``..``.

    Raises:
        OSError: it cannot be opened; ELOOP where a link is on the way.
    """
    descriptor = _by_openat2(folder, path)
    return _by_walking(folder, path) if descriptor is None else descriptor


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _by_openat2(folder: int, path: Path) -> int | None:
    """The same by the system call; None where there is none."""
    how = _How(_FLAGS, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    name = os.fsencode(path)
    descriptor = int(
        _libc().syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(folder),
            ctypes.c_char_p(name),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
    )
    if descriptor >= 0:
        return descriptor
    failed = ctypes.get_errno()
    if failed in _ABSENT:
        return None
    raise OSError(failed, os.strerror(failed), str(path))


def _by_walking(folder: int, path: Path) -> int:
    """The same one folder after the other."""
    *folders, name = path.parts or (".",)
    at = os.dup(folder)
    try:
        for step in folders:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                inner = os.open(step, flags, dir_fd=at)
            except NotADirectoryError as error:
                # Of a link, O_DIRECTORY says this, too.
                mode = os.stat(step, dir_fd=at, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
                raise
            os.close(at)
            at = inner
        return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)
