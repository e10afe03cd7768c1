"""A release tries every extra that a person may install, and says what is still to be filled in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from release import check, recipe

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"]) - {"dev", "docs"}


def test_each_extra_is_tried_and_has_a_conda_package() -> None:
    (tried,) = re.findall(r"^EXTRA \?= (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(tried.split()) == EXTRAS
    named = {output["package"]["name"] for output in recipe.recipe()["outputs"]}
    assert named == {"cryoray", *(f"cryoray-{extra}" for extra in EXTRAS)}


def test_the_recipe_has_the_requirements_of_the_project() -> None:
    outputs = {one["package"]["name"]: one["requirements"] for one in recipe.recipe()["outputs"]}
    assert "pytorch >=2.11" in outputs["cryoray"]["run"]
    assert len(outputs["cryoray"]["run"]) == 1 + len(PROJECT["dependencies"])
    assert any(one.startswith("ray-serve ") for one in outputs["cryoray-train"]["run"])


def test_what_whoever_publishes_has_to_add_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "ROOT", tmp_path)
    (tmp_path / ".github").mkdir()
    (tmp_path / ".github/CODEOWNERS").write_text("# nobody yet\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nurls.Source = "https://example.org"\n')
    lacks = check.missing()
    assert "[project.urls] Source in pyproject.toml" not in lacks
    assert "[project.urls] Issues in pyproject.toml" in lacks
    assert "people in .github/CODEOWNERS" in lacks
    (tmp_path / ".github/CODEOWNERS").write_text("# from here on\n* @someone\n")
    assert "people in .github/CODEOWNERS" not in check.missing()
