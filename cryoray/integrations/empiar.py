"""Public entries of EMPIAR: listed, then downloaded over HTTPS, going on where an earlier download stopped.

An entry is a folder of EMPIAR's web server, whose pages list files and folders (Apache's index). The names,
sizes and digests of what was fetched stay in ``fetch.json`` beside it. Where the entry has checksums of its
own (a file of md5sum or sha256sum), they are what counts.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from cryoray.errors import FormatError, InputError, SettingsError
from cryoray.formats.files import replacing
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore

#: Where EMPIAR keeps its entries.
EMPIAR = "https://ftp.ebi.ac.uk/empiar/world_availability"
#: Particles, and what is said of them.
PATTERNS = ("*.star", "*.mrcs", "*.cs", "*.csv", "job_score.txt")
MANIFEST = "fetch.json"
_CHECKSUMS = re.compile(r"(md5|sha256)(sums?)?(\.txt)?$|^(md5|sha256)sums?", re.IGNORECASE)
_LINE = re.compile(r"^([0-9a-fA-F]{32}|[0-9a-fA-F]{64})[ \t]+\*?(\S.*)$")
_ENTRY = re.compile(r"(?:EMPIAR-)?(\d{5})", re.IGNORECASE)
#: Folders below an entry that are looked into, and pages that are read, at most.
_DEPTH, _PAGES = 8, 2000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of an entry.

    Attributes:
        path: below the entry's folder.
        size: bytes.
        url: where it is; '' in a mirrored folder.
    """

    path: str
    size: int
    url: str = ""


def entry_number(entry: str) -> str:
    """``10812`` of ``EMPIAR-10812``.

    Raises:
        SettingsError: it is no entry's name.
    """
    found = _ENTRY.fullmatch(entry.strip())
    if not found:
        raise SettingsError(
            f"{entry!r} is not an entry of EMPIAR", remedy="give one such as EMPIAR-10812"
        )
    return found[1]


def fetch(
    entry: str,
    out: Path,
    *,
    patterns: Sequence[str] = PATTERNS,
    base: str = EMPIAR,
    mirror: Path | None = None,
    confirm: Callable[[Sequence[Remote]], bool] = lambda _: True,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> list[Remote]:
    """Bring the files of an entry into a folder, as far as they are not there yet.

    Args:
        entry: ``EMPIAR-10812``, or its number.
        out: folder; the files lie in it as in the entry.
        patterns: of the files' names, or of their paths below the entry.
        base: URL of the entries; HTTPS, but for a server on this machine.
        mirror: a folder that holds the entry already: nothing is downloaded, its files are linked.
        confirm: called with what is still to come, with sizes, before the first byte; False stops.
        on_progress: bytes of what is still to come.
        on_event: ``fetch.listed``, ``fetch.done``.

    Returns:
        the entry's files of these patterns; none where ``confirm`` answered no.

    Raises:
        InputError: there is no such entry, or nothing in it matches; the server or the network failed;
            a checksum differs.
        SettingsError: the entry's name or the address cannot be one.
    """
    number, out = entry_number(entry), Path(out).absolute()
    if mirror is not None:
        return _link(Path(mirror).absolute(), out, number, patterns)
    _check_address(base)
    root = f"{base.rstrip('/')}/{number}/"
    known = _manifest(out)
    timeout = httpx.Timeout(60.0)
    try:
        with httpx.Client(timeout=timeout, follow_redirects=False) as client:
            everything = _listed(client, root)
            wanted = [url for path, url in everything.items() if _matches(path, patterns)]
            if not wanted:
                raise InputError(
                    f"holds no file named {' or '.join(patterns)} among its {len(everything)}",
                    file=root,
                    remedy="give other --pattern",
                )
            files = [_sized(client, root, url) for url in wanted]
            on_event(
                Event(
                    "fetch.listed",
                    {"entry": number, "files": len(files), "bytes": sum(f.size for f in files)},
                )
            )
            missing = [file for file in files if not _there(out, file, known)]
            if missing and not confirm(missing):
                return []
            sums = _checksums(client, everything) if missing else {}
            total, done = sum(file.size for file in missing), 0
            for file in missing:

                def on_bytes(now: int, before: int = done, name: str = file.path) -> None:
                    on_progress(Progress("fetch", before + now, total, "bytes", name))

                digest = _download(client, file, out, sums.get(file.path), on_bytes)
                known[file.path] = {**asdict(file), "sha256": digest}
                _write_manifest(out, number, known)
                done += file.size
    except httpx.HTTPError as error:
        raise InputError(
            f"the network or the server failed ({type(error).__name__}: {error})",
            file=root,
            remedy="run the same command again: it goes on where it stopped",
        ) from error
    on_event(Event("fetch.done", {"entry": number, "files": len(files), "fetched": len(missing)}))
    return files


def _check_address(base: str) -> None:
    parts = urlsplit(base)
    own = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and own):
        raise SettingsError(
            f"{base} is not an HTTPS address", remedy="give one that begins with https://"
        )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _listed(client: httpx.Client, root: str) -> dict[str, str]:
    """URL by path of every file below ``root``, in order of paths."""
    found: dict[str, str] = {}
    folders, seen = [(root, 0)], {root}
    while folders:
        folder, depth = folders.pop()
        answer = client.get(folder)
        if answer.status_code == 404 and folder == root:
            raise InputError("there is no such entry", file=root, remedy="look it up at EMPIAR")
        _check(answer)
        page = _Links()
        page.feed(answer.text)
        for link in page.found:
            url = urljoin(folder, link)
            parts = urlsplit(url)
            below = unquote(parts.path).removeprefix(unquote(urlsplit(root).path))
            inside = url.startswith(folder) and url != folder and not parts.query
            if not inside or ".." in PurePosixPath(below).parts or url in seen:
                continue
            seen.add(url)
            if not url.endswith("/"):
                found[below] = url
            elif depth < _DEPTH and len(seen) < _PAGES + len(found):
                folders.append((url, depth + 1))
    return dict(sorted(found.items()))


def _check(answer: httpx.Response) -> None:
    if answer.status_code not in (200, 206):
        raise InputError(
            f"the server answers {answer.status_code}",
            file=str(answer.url),
            remedy="try again later; what was fetched stays",
        )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = PurePosixPath(path).name
    return any(fnmatch.fnmatch(name, one) or fnmatch.fnmatch(path, one) for one in patterns)


def _sized(client: httpx.Client, root: str, url: str) -> Remote:
    answer = client.head(url)
    _check(answer)
    path = unquote(urlsplit(url).path).removeprefix(unquote(urlsplit(root).path))
    return Remote(path, int(answer.headers.get("content-length", 0)), url)


def _checksums(client: httpx.Client, everything: Mapping[str, str]) -> dict[str, str]:
    """Digests, MD5 or SHA-256 as their length tells, by path, of the entry's own lists."""
    sums: dict[str, str] = {}
    for path, url in everything.items():
        if not _CHECKSUMS.search(PurePosixPath(path).name):
            continue
        answer = client.get(url)
        _check(answer)
        for line in answer.text.splitlines():
            if found := _LINE.match(line.strip()):
                name = PurePosixPath(path).parent / found[2].removeprefix("./")
                sums[name.as_posix()] = found[1].lower()
    return sums


def _there(out: Path, file: Remote, known: Mapping[str, Mapping[str, object]]) -> bool:
    path = out / file.path
    return file.path in known and path.is_file() and path.stat().st_size == file.size


def _download(
    client: httpx.Client,
    file: Remote,
    out: Path,
    expected: str | None,
    on_bytes: Callable[[int], None],
) -> str:
    """Fetch one file, from where an earlier try stopped if the server's copy is still the same."""
    path = out / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, validator = (path.with_name(f".{path.name}.{end}") for end in ("part", "etag"))
    start = part.stat().st_size if part.is_file() and validator.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if 0 < start < file.size:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator.read_text()}
    if start != file.size or not start:
        with client.stream("GET", file.url, headers=headers) as answer:
            _check(answer)
            same = answer.headers.get("etag") or answer.headers.get("last-modified")
            # A weak ETag does not vouch for bytes (RFC 9110, 13.1.5).
            if same and not same.startswith("W/"):
                validator.write_text(same)
            here = start if answer.status_code == 206 else 0
            with part.open("r+b" if here else "wb") as written:
                written.seek(here)
                for chunk in answer.iter_raw():
                    written.write(chunk)
                    here += len(chunk)
                    on_bytes(here)
                written.truncate()
    if part.stat().st_size != file.size:
        raise InputError(
            f"{part.stat().st_size:,} of {file.size:,} bytes came",
            file=file.url,
            remedy="run the same command again: it goes on where it stopped",
        )
    digests = {32: hashlib.md5(usedforsecurity=False), 64: hashlib.sha256()}
    with part.open("rb") as read:
        while chunk := read.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    if expected is not None and digests[len(expected)].hexdigest() != expected:
        part.unlink()
        raise InputError(
            "what came is not what the entry's checksum says",
            file=file.url,
            remedy="run the same command again: the file is fetched again",
        )
    part.replace(path)
    validator.unlink(missing_ok=True)
    return digests[64].hexdigest()


def _manifest(out: Path) -> dict[str, dict[str, object]]:
    file = out / MANIFEST
    if not file.is_file():
        return {}
    try:
        return {one["path"]: one for one in json.loads(file.read_text(encoding="utf-8"))["files"]}
    except (ValueError, KeyError, TypeError):
        raise FormatError(
            "is not a list of fetched files", file=file, remedy="remove it, or give another --out"
        ) from None


def _write_manifest(out: Path, number: str, known: Mapping[str, Mapping[str, object]]) -> None:
    content = {"entry": f"EMPIAR-{number}", "files": list(known.values())}
    with replacing(out / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _link(mirror: Path, out: Path, number: str, patterns: Sequence[str]) -> list[Remote]:
    """Links to a mirrored entry's files: sources are never copied whole."""
    inside = mirror / number if (mirror / number).is_dir() else mirror
    paths = sorted(path for path in inside.rglob("*") if path.is_file())
    names = {path.relative_to(inside).as_posix(): path for path in paths}
    files = [
        Remote(name, path.stat().st_size)
        for name, path in names.items()
        if _matches(name, patterns)
    ]
    if not files:
        raise InputError(
            f"holds no file named {' or '.join(patterns)}",
            file=inside,
            remedy="give other --pattern",
        )
    for file in files:
        link = out / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(names[file.path])
    _write_manifest(out, number, {file.path: asdict(file) for file in files})
    return files
