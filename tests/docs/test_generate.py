"""The parts of the site that are made from the code say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cryoray.cli.main import app
from cryoray.preparation.features import FEATURES
from cryoray.protocol.messages import ENSEMBLES, HEALTH, JUDGE, METRICS, PROFILES, SHADOW
from cryoray.records import VERDICTS_SCHEMA
from docs import generate

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_every_event_that_the_code_raises_has_a_sentence() -> None:
    assert set(generate.raised()) - set(generate.EVENTS) == set(), "add it to docs/generate.py"


def test_no_event_is_described_that_the_code_does_not_know() -> None:
    code = "".join(path.read_text() for path in (ROOT / "cryoray").rglob("*.py"))
    assert [name for name in generate.EVENTS if f'"{name}"' not in code] == []


def test_events_are_found_in_whichever_form_they_are_raised() -> None:
    raised = generate.raised()
    assert raised["companion.unused"] == ["file", "because"]
    assert raised["service.back"] == []


def test_every_setting_stands_in_the_table_once() -> None:
    table = generate.settings()
    assert table.count("| `train.fit.epochs` | `60` | integer ≥ 1 |") == 1
    named = re.findall(r"^\| `([\w.…]+)`", table, flags=re.MULTILINE)
    assert len(named) == len(set(named)) > 150


def test_every_command_and_option_is_listed() -> None:
    text = generate.commands()
    listed = set(re.findall(r"^## `cryoray ([\w-]+)`", text, flags=re.MULTILINE))
    there = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback and not command.hidden
    }
    assert listed == there | {group.name for group in app.registered_groups}
    assert "### `cryoray validate fsc`" in text
    assert "| `--class-ensemble NAME\\|DIR` |" in text


@pytest.mark.long
def test_the_programs_for_relion_and_cryosparc_say_what_they_take() -> None:
    text = generate.programs()
    assert "--min_score" in text
    assert text.count("usage: cryoray-") == 3


def test_every_feature_is_listed_once_for_each_kind() -> None:
    particles = [one.name for one in FEATURES if "particle" in one.kinds]
    listed = re.findall(r"^\| `(\w+)`", generate.features_of_particles(), flags=re.MULTILINE)
    assert listed == particles


def test_the_columns_of_verdicts_are_those_that_are_written() -> None:
    listed = re.findall(r"^\| `(\w+)`", generate.verdict_columns(), flags=re.MULTILINE)
    assert listed == VERDICTS_SCHEMA.names


@pytest.mark.long
def test_every_address_of_the_service_says_whether_it_wants_a_token() -> None:
    text = generate.http()
    for path in (ENSEMBLES, HEALTH, JUDGE, METRICS, PROFILES, SHADOW):
        (section,) = re.findall(rf"^## `\w+ {path}`\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
        public = path in (HEALTH, METRICS)
        assert ("*no token*" in section) == public, path
        assert ("*bearer token*" in section) != public, path


def test_metrics_have_the_names_that_prometheus_sees() -> None:
    text = generate.metrics()
    assert "| `cryoray_images_total{ensemble,verdict}` | counter |" in text
    assert "| `cryoray_session_stacks{state}` | gauge |" in text


def test_every_section_of_the_results_is_on_one_page() -> None:
    sections = re.findall(r"^## .*$", generate.RESULTS.read_text(), flags=re.MULTILINE)
    shown = [
        heading
        for page in ("accuracy", "speed", "maps")
        for heading in re.findall(r"^## .*$", generate.measured(page), flags=re.MULTILINE)
    ]
    assert sorted(shown) == sorted(sections)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_markers_name_what_is_made(page: Path) -> None:
    made = re.findall(r"<!-- made: ([\w-]+) -->", page.read_text())
    assert set(made) <= set(generate.MADE)


def test_an_unknown_marker_stops_the_build() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        generate.on_page_markdown("<!-- made: nonsense -->")
