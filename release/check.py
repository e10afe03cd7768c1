"""``python -m release.check DIST``: the wheel and sdist that others would install, tried as they would.

Contents and size; ``twine check``; then the wheel in a bare environment outside the clone, with no extra and
with each that was named (``--extra``), and what that extra is for is done there: with `report` the first
tutorial as it is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cryoray.version import __version__
from docs.pages import tutorial

ROOT = Path(__file__).parents[1]
#: MiB that a wheel and an sdist may have; nearly all of it is the ensembles that ship.
MOST_MIB = 20
#: What a published project has under [project.urls].
URLS = ("Documentation", "Source", "Issues", "Changelog")

_ALONE = """
from pathlib import Path
import cryoray
settings = cryoray.load_settings(simulate={"projects": 1, "images": 60})
(project,) = cryoray.simulate(Path("past"), settings)
print(cryoray.load_ensemble("particle").classify(project / "particles.star"))
"""


def trials(extra: str, programs: Path) -> Iterator[list[str]]:
    """What is run in an environment with one extra, '' for none."""
    python = programs / "python"
    yield [str(programs / "cryoray"), "--version"]
    yield [str(python), "-c", _ALONE]
    if extra in ("report", "notebook", "train", "serve", "flows", "all"):
        yield tutorial("first-selection").command(python)
    if extra in ("notebook", "all"):
        yield tutorial("notebook").command(python)
    if extra in ("session", "serve", "flows", "all"):
        yield [str(programs / "cryoray"), "watch", "--help"]
        yield [str(python), "-c", "import cryoray.session.page, cryoray.session.watcher"]
    if extra in ("select", "all"):
        yield [str(programs / "cryoray"), "select", "--help"]
        yield [str(python), "-c", "import cryoray.select.app, cryoray.select.saving"]
    if extra in ("train", "serve", "flows", "all"):
        yield [str(python), "-c", "import cryoray.engine.training, cryoray.engine.tuning"]
    if extra in ("serve", "flows", "all"):
        yield [str(python), "-c", "import cryoray.serving.app"]
    if extra in ("flows", "all"):
        yield [str(python), "-m", "cryoray_flows.single_particle", "--help"]
    if extra in ("postgres", "all"):
        yield [str(python), "-c", "import psycopg"]


def check_contents(names: Sequence[str], tops: set[str], what: str) -> None:
    """Refuse what does not belong there, and what is missing.

    Raises:
        SystemExit: with a sentence that says which.
    """
    found = {name.partition("/")[0] for name in names}
    if found != tops:
        raise SystemExit(f"{what}: has {sorted(found ^ tops)} too many or too few.")
    if strays := [name for name in names if "__pycache__" in name or name.endswith(".pyc")]:
        raise SystemExit(f"{what}: has {strays[0]}; make clean, and build it again.")
    for needed in ("cryoray/py.typed", "cryoray/ensembles/particle/d1.safetensors"):
        if not any(name.endswith(needed) for name in names):
            raise SystemExit(f"{what}: lacks {needed}.")


def check_files(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of this version in a folder, their contents and size checked."""
    wheel = folder / f"cryoray-{__version__}-py3-none-any.whl"
    source = folder / f"cryoray-{__version__}.tar.gz"
    for one in (wheel, source):
        if not one.is_file():
            raise SystemExit(f"{one}: is not there; run `make release`.")
        size = one.stat().st_size / 2**20
        if size > MOST_MIB:
            raise SystemExit(f"{one}: has {size:.1f} MiB, more than {MOST_MIB}.")
        print(f"{one.name}: {size:.1f} MiB")
    info = f"cryoray-{__version__}.dist-info"
    check_contents(
        zipfile.ZipFile(wheel).namelist(), {"cryoray", "cryoray_flows", info}, wheel.name
    )
    with tarfile.open(source) as packed:
        names = [name.partition("/")[2] for name in packed.getnames()]
    inside = {name for name in names if name.startswith(("cryoray/", "flows/"))}
    check_contents(sorted(inside), {"cryoray", "flows"}, source.name)
    for needed in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if needed not in names:
            raise SystemExit(f"{source.name}: lacks {needed}.")
    return wheel, source


def run(command: Sequence[str | Path], folder: Path, **more: str) -> None:
    """Run something where no clone is on the path; what it prints is shown where it fails.

    Raises:
        SystemExit: it fails.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(one) for one in command],
        cwd=folder,
        env={**kept, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{command[0]} ended with {done.returncode}.")


def try_extra(wheel: Path, extra: str, shared: bool) -> None:
    """Install the wheel with an extra into a bare environment outside the clone, and use it there.

    Args:
        wheel: to install.
        extra: '' for none.
        shared: take dependencies from this environment; quick, and shows only what is in the wheel.
    """
    with tempfile.TemporaryDirectory(prefix="cryoray-release-") as made:
        folder = Path(made)
        venv.create(folder / "venv", with_pip=not shared)
        programs = folder / "venv/bin"
        wanted = f"{wheel}[{extra}]" if extra else str(wheel)
        if shared:
            shared_install = (
                "-m",
                "pip",
                "--python",
                str(programs / "python"),
                "install",
                "--quiet",
            )
            run([sys.executable, *shared_install, "--no-deps", "--no-index", wheel], folder)
            (site,) = (folder / "venv/lib").glob("python*/site-packages")
            paths = [path for path in sys.path if path.endswith("site-packages")]
            (site / "dependencies.pth").write_text("\n".join(paths) + "\n")
        else:
            pinned = ("--constraint", ROOT / "constraints.txt", wanted)
            run([programs / "python", "-m", "pip", "install", "--quiet", *pinned], folder)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        for number, trial in enumerate(trials(extra, programs)):
            (folder / f"trial{number}").mkdir()
            run(trial, folder / f"trial{number}", PATH=path, HOME=str(folder), COLUMNS="100")
        print(f"cryoray{f'[{extra}]' if extra else ''}: installed and used")


def missing() -> list[str]:
    """What a published project has and this one lacks: addresses, and owners of its code."""
    project: Mapping[str, Mapping[str, str]] = tomllib.loads(
        (ROOT / "pyproject.toml").read_text("utf-8")
    )["project"]
    urls = project.get("urls", {})
    lacks = [f"[project.urls] {name} in pyproject.toml" for name in URLS if name not in urls]
    owners = (ROOT / ".github/CODEOWNERS").read_text("utf-8").splitlines()
    if all(line.startswith("#") for line in owners if line):
        lacks.append("people in .github/CODEOWNERS")
    return lacks


def main() -> None:
    """Check all, in the order of what it costs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIST")
    parser.add_argument("--extra", action="append", default=[], help="repeatable; '' for none")
    parser.add_argument("--twine", type=Path, help="the program")
    parser.add_argument("--shared", action="store_true", help="dependencies of this environment")
    given = parser.parse_args()
    wheel, source = check_files(given.folder.absolute())
    if given.twine:
        run([given.twine.absolute(), "check", "--strict", wheel, source], ROOT)
        print("twine check: passed")
    for extra in given.extra:
        try_extra(wheel, extra, given.shared)
    if lacks := missing():
        print(f"Before you publish it, add {', '.join(lacks)}.")


if __name__ == "__main__":
    main()
