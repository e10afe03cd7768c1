"""The house keeps its shape: floors, purposes, light imports, and papers that say what is true."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryoray import errors
from tests.packaging import hashes

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(
    path
    for top in ("cryoray", "docs", "flows", "release", "tests")
    for path in (ROOT / top).rglob("*.py")
)


def test_modules_import_only_from_lower_floors() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_module_stands_on_a_floor() -> None:
    floors = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip() for floor in floors for name in floor.split("|")} - {"flows"}
    there = {
        f"cryoray.{path.stem}"
        for path in (ROOT / "cryoray").iterdir()
        if path.name != "__init__.py" and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert there == named


@pytest.mark.long
def test_a_star_column_that_several_modules_read_is_spelled_in_one() -> None:
    """`simulation` and `recipes` play RELION's part and spell the names themselves."""
    spelled: dict[str, set[str]] = {}
    for path in MODULES:
        module = path.relative_to(ROOT)
        if module.parts[0] == "cryoray" and module.parts[1] not in ("simulation", "recipes"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and re.fullmatch(r"rln[A-Z]\w+", str(node.value)):
                    spelled.setdefault(str(node.value), set()).add(str(module))
    assert {name: modules for name, modules in spelled.items() if len(modules) > 1} == {}


@pytest.mark.long
def test_every_module_says_first_what_it_is_for() -> None:
    purposes = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in MODULES}
    silent = [
        str(path.relative_to(ROOT))
        for path, purpose in purposes.items()
        if not purpose.partition("\n")[0].endswith((".", "?", ":"))
    ]
    assert silent == []


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys; import cryoray.cli.main; "
        "print(*sorted({'torch', 'ray', 'numpy', 'pydantic', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def tracked() -> Iterator[tuple[str, str]]:
    """Name and text of each text file that git tracks."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (path := ROOT / name).is_file():
            try:
                yield name, path.read_text()
            except UnicodeDecodeError:
                continue


def test_no_package_index_and_no_home_folder_is_named() -> None:
    index = re.compile("index" + r"-url|https?://\S+/" + r"simple\b|" + r"find" + "-links")
    home = re.compile(r"/(home/\w+|root|Users/\w+)/")
    found = [
        (name, hit.group())
        for name, text in tracked()
        for hit in (*index.finditer(text), *home.finditer(text))
    ]
    assert found == []


def test_every_dependency_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9a-z.]+", line)] == []
    pinned = {_canonical(line.split("==")[0]) for line in pins}
    assert declared(*EXTRAS) - pinned == set()


def test_every_pin_has_its_hashes_and_torch_those_of_both_its_kinds() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    both, cpu, cuda = (hashes.read(file) for file in (hashes.ALL, hashes.CPU, hashes.CUDA))
    versions = {
        _canonical(name): version.removesuffix("+cpu")
        for name, (version, _) in (both | cpu).items()
    }
    assert versions == {
        _canonical(name): version for name, _, version in (line.partition("==") for line in pins)
    }
    assert {"torch", "triton", "nvidia-cublas"} <= cuda.keys()
    assert cuda["torch"][0] == versions["torch"]
    assert set(cpu["torch"][1]).isdisjoint(cuda["torch"][1])
    for name, (_, of) in (both | cpu | cuda).items():
        assert of, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in of), name


EXTRAS = PROJECT["project"]["optional-dependencies"]

#: Modules that are called otherwise than the distribution which has them.
CALLED = {
    "PIL": "pillow",
    "cryosparc": "cryosparc-tools",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}

#: The extras that a folder may count on beside what every installation has. `cryoray-cryosparc` runs where
#: cryoSPARC's own tools are; of cryoray's extras only `dev` brings them.
MAY_USE = {
    "cryoray": ("notebook",),
    "cryoray/cli": ("report", "dev"),
    "cryoray/diagnostics": ("train",),
    "cryoray/engine": ("train",),
    "cryoray/imaging": ("report",),
    "cryoray/report": ("report",),
    "cryoray/serving": ("serve",),
    "cryoray/select": ("select",),
    "cryoray/session": ("session",),
    "cryoray/web": ("select",),
    "docs": ("all", "dev"),
    "flows": ("flows",),
    "benchmarks": ("all", "dev"),
    "tests": ("all", "dev"),
}
FOLDERS = sorted(
    {
        *MAY_USE,
        *(str(path.parent.relative_to(ROOT)) for path in (ROOT / "cryoray").glob("*/__init__.py")),
    }
)


def declared(*extras: str) -> set[str]:
    """The distributions of a bare installation and of some extras."""
    found, todo = (
        set(),
        [*PROJECT["project"]["dependencies"], *(one for e in extras for one in EXTRAS[e])],
    )
    while todo:
        name, inside = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", todo.pop()).groups()  # type: ignore[union-attr]
        if name == "cryoray":
            todo += [one for extra in inside.split(",") for one in EXTRAS[extra]]
        else:
            found.add(_canonical(name))
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: str) -> set[str]:
    """The modules of others that a folder's code imports, wherever in a file."""
    top = ROOT / folder
    files = top.glob("*.py") if folder == "cryoray" else top.rglob("*.py")
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    absolute = (one for one in nodes if isinstance(one, ast.ImportFrom) and not one.level)
    names += [node.module for node in absolute if node.module]
    own = {"cryoray", "docs", "flows", "release", "tests", "benchmarks"}
    return {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_declared(folder: str) -> None:
    distributions = {_canonical(CALLED.get(name, name)) for name in imported(folder)}
    assert distributions - declared(*MAY_USE.get(folder, ())) == set()


def test_what_is_declared_is_imported() -> None:
    used = {_canonical(CALLED.get(name, name)) for folder in FOLDERS for name in imported(folder)}
    tools = {
        "coverage", "import-linter", "mkdocs-material", "mkdocstrings", "mypy", "pandas-stubs",
        "pytest-timeout", "pytest-xdist", "ruff", "schemathesis", "setuptools", "types-pyyaml",
    }  # fmt: skip
    assert declared(*EXTRAS) - used - tools == set()


def test_everything_is_what_all_extras_are_together() -> None:
    assert declared("all") == declared(*(set(EXTRAS) - {"dev", "docs"}))


def test_what_a_machine_may_be_without_is_named_with_its_extra() -> None:
    everywhere = declared()
    for module, extra in errors.EXTRAS.items():
        name = _canonical(CALLED.get(module, module))
        own = {_canonical(re.split(r"[\[<>=]", one)[0]) for one in EXTRAS[extra]}
        assert name in own - everywhere, module
    optional = {
        module
        for folder in FOLDERS
        if folder.startswith("cryoray")
        for module in imported(folder)
        if _canonical(CALLED.get(module, module)) not in everywhere
    }
    assert optional - {"cryosparc"} == set(errors.EXTRAS)


def test_the_readme_and_ci_call_targets_that_make_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for paper in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        called = set(re.findall(r"\bmake ([a-z-]+)", _code((ROOT / paper).read_text())))
        assert called <= targets, paper
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test " in (ROOT / "README.md").read_text()


def _code(text: str) -> str:
    """What stands between backquotes in markdown; a script as a whole."""
    return text if text.startswith("#!") else "\n".join(re.findall(r"`+([^`]+)`+", text))


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 6_000


@pytest.mark.parametrize("paper", ["README.md", "CONTRIBUTING.md", "cluster/README.md"])
def test_links_to_files_hold(paper: str) -> None:
    text = (ROOT / paper).read_text()
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [one for one in targets if one and "://" not in one]
    assert [one for one in local if not (ROOT / paper).parent.joinpath(one).exists()] == []


@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        ("PYTHON=", "Python 3.11 or newer"),
        ("PYTHON={old}", "older than Python 3.11"),
        ("PYTHON={bare}", "apt install python3-venv"),
    ],
)
def test_make_says_what_to_install_where_something_is_missing(
    tmp_path: Path, python: str, sentence: str
) -> None:
    for name, answer in (("old", "exit 1"), ("bare", 'case "$2" in *ensurepip*) exit 1;; esac')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    done = subprocess.run(
        ["make", "install", python.format(old=tmp_path / "old", bare=tmp_path / "bare")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (tmp_path / ".venv").exists()
