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

from cryoray.cli.main import app
from tests.architecture import feature_table, settings_table

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(
    path for top in ("cryoray", "flows", "tests") for path in (ROOT / top).rglob("*.py")
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
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    missing = {_canonical(re.split(r"[\[<>=;\s]", one)[0]) for one in wanted} - pinned
    assert missing == set()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_readme_names_exactly_the_commands_there_are() -> None:
    text = settings_table.README.read_text()
    named = set(re.findall(r"^\| `cryoray ([\w-]+)", text, flags=re.MULTILINE))
    there = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback and not command.hidden
    }
    assert named == there | {group.name for group in app.registered_groups}


def test_the_readme_and_ci_call_targets_that_make_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for paper in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        called = set(re.findall(r"\bmake ([a-z-]+)", _code((ROOT / paper).read_text())))
        assert called <= targets, paper
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test " in settings_table.README.read_text()


def _code(text: str) -> str:
    """What stands between backquotes in markdown; a script as a whole."""
    return text if text.startswith("#!") else "\n".join(re.findall(r"`+([^`]+)`+", text))


def test_the_readme_has_the_settings_as_they_are() -> None:
    assert settings_table.parts()[1] == settings_table.table(), (
        "renew it: python -m tests.architecture.settings_table"
    )


def test_the_page_of_features_has_them_as_they_are() -> None:
    assert feature_table.PAGE.read_text() == feature_table.table(), (
        "renew it: python -m tests.architecture.feature_table"
    )


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
