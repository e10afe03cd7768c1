"""Kill an ingestion with SIGKILL at each moment at which it changes the disk, and run it to its end.

``python killed.py FOLDER N``, for every Nth moment, prints their number and how many of the second
runs found work that the first had done. Each run is a process of its own, forked so that nothing is
imported again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from itertools import count
from pathlib import Path

from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import Settings
from cryoray.verbs.ingest import ingest


def run(sources: list[Path], out: Path, add: bool, kill_at: int | None) -> tuple[int, bool]:
    """How often the disk was changed (0 if killed), and whether earlier work was found."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        moments = count(1)

        def watched(function, every=1):
            calls = count()

            def call(*arguments, **options):
                if next(calls) % every == 0 and next(moments) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for owner, name in ((Path, "replace"), (Path, "rename"), (os, "link"), (os, "unlink")):
            setattr(owner, name, watched(getattr(owner, name)))
        os.pwrite = watched(os.pwrite, every=100)
        settings = Settings(ingest={"preparation": {"box": 32}, "range_mib": 1, "add": add})
        names: list[str] = []
        try:
            ingest(sources, out, settings, on_event=lambda event: names.append(event.name))
            os.write(writing, f"{next(moments) - 1} {int('ingest.resumed' in names)}".encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        words = said.read().split()
    if kill_at is None:
        assert words, "the ingestion failed"
        return int(words[0]), words[1] == "1"
    assert os.WIFSIGNALED(status), (kill_at, status)
    return 0, False


def main(folder: Path, every: int) -> None:
    """Kill while an older set is replaced, and while one is added to."""
    one, two = folder / "one", folder / "two"
    older, expected = folder / "older", folder / "expected"
    run([one], older, False, None)
    total, resumed = 0, 0
    for add in (False, True):
        shutil.rmtree(expected, ignore_errors=True)
        if add:
            shutil.copytree(older, expected)
        moments, _ = run([one, two], expected, add, None)
        for moment in range(1, moments + 1, every):
            total += 1
            out = folder / "set"
            shutil.copytree(older, out)
            run([one, two], out, add, moment)
            _, found = run([one, two], out, add, None)
            resumed += found
            for file in expected.iterdir():
                assert (out / file.name).read_bytes() == file.read_bytes(), (moment, file.name)
            assert PreparedSet.open(out).digest == PreparedSet.open(expected).digest
            left = sorted(path.name for path in folder.iterdir())
            assert left == ["expected", "older", "one", "set", "two"], (moment, left)
            shutil.rmtree(out)
    print(total, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
