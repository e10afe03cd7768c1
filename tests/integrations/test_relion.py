"""Jobs of RELION's pipeline: known again by the options that RELION kept.

RELION itself is in tests/system/test_workflow.py; here a program of its name tells a version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cryoray.formats.relion import VERSION, loop
from cryoray.formats.star import parse
from cryoray.integrations.relion import PIPELINE, SUCCESS, Relion, options_of
from tests.formats.relion_rules import VERSIONS, Version, violations
from tests.integrations.programs import relion


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Relion:
    (tmp_path / "bin").mkdir()
    relion(tmp_path / "bin", monkeypatch, "5.0.1")
    return Relion(tmp_path / "project")


def finished(driver: Relion, name: str, options: Mapping[str, str]) -> None:
    """A job that ended well, with the job.star that RELION wrote."""
    folder = driver.project / name
    folder.mkdir(parents=True)
    rows = [[option, f'"{value}"'] for option, value in options.items()]
    text = loop("joboptions_values", ["rlnJobOptionVariable", "rlnJobOptionValue"], rows)
    (folder / "job.star").write_bytes(VERSION + text)
    (folder / SUCCESS).touch()


#: What RELION 5 wrote of an InitialModel job that was given `sgd_ini_iter` too, which it does not know.
WRITTEN = {"fn_img": "particles.star", "nr_classes": "1", "nr_iter": "200"}
GIVEN = {"fn_img": "particles.star", "nr_classes": "1", "sgd_ini_iter": "20", "do_pad1": "Yes"}


def test_a_job_is_known_again_without_the_options_that_relion_dropped(driver: Relion) -> None:
    finished(driver, "InitialModel/job005", WRITTEN)
    job = driver.run("InitialModel", GIVEN)
    assert (job.name, job.skipped) == ("InitialModel/job005", True)
    assert job.dropped == ("sgd_ini_iter", "do_pad1")
    assert driver.done("InitialModel", {**GIVEN, "nr_classes": "2"}) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_new_project_has_a_pipeline_that_relion_reads(driver: Relion, version: Version) -> None:
    assert violations(driver.project / PIPELINE, version, "pipeline") == []


def test_a_job_whose_options_cannot_be_read_is_nobodys(driver: Relion) -> None:
    finished(driver, "InitialModel/job005", WRITTEN)
    (driver.project / "InitialModel/job005/job.star").write_text("not a STAR file")
    assert driver.done("InitialModel", GIVEN) is None


@pytest.mark.parametrize("value", ["", "No", "a b", 'say "no" to it', "it's"])
def test_an_option_with_any_value_is_written_as_relion_reads_it(
    driver: Relion, tmp_path: Path, value: str
) -> None:
    path = tmp_path / "job.star"
    path.write_bytes(driver._job_star("Class2D", {"other_args": value, "nr_iter": "5"}))
    assert options_of(path) == {"other_args": value, "nr_iter": "5"}
    assert parse(path)["job"].fields(0)[0] == "relion.class2d.em"
