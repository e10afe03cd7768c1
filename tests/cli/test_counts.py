"""Kept is counted one way: on the command line, on the page, in metrics.json and in the files."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cryoray import terminal
from cryoray.cli.main import app
from cryoray.formats.relion import image_table
from cryoray.formats.star import parse
from cryoray.records import VERDICTS
from cryoray.report import percent
from cryoray.select.clicks import Clicks
from cryoray.select.selection import Selection
from cryoray.select.table import open_table
from tests.classes import write_class_job
from tests.examples import write_project


@pytest.fixture(autouse=True)
def consoles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=200, highlight=False))
    monkeypatch.setattr(terminal, "err", Console(stderr=True, width=200, highlight=False))


def judged(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["classify", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout.replace("│", " ")


@pytest.mark.parametrize("policy", [None, "each", "threshold=0.52", "share=0.3"])
def test_kept_and_review_are_the_same_numbers_everywhere(
    project: Path, tiny_ensemble: Path, tmp_path: Path, policy: str | None
) -> None:
    out = tmp_path / "out"
    given = ["--policy", policy] if policy else []
    shown = judged(project, "--out", out, "--ensemble", tiny_ensemble, *given)
    table = pq.read_table(out / "verdicts.parquet")
    verdict = np.array(table["verdict"].to_pylist(), object)
    counts = {name: int((verdict == name).sum()) for name in VERDICTS}
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    line = float(about["threshold"])
    assert about["policy"] == (policy or "each")

    metrics = json.loads((out / "metrics.json").read_text())
    assert {name: metrics[name] for name in VERDICTS} == counts
    assert (metrics["policy"], metrics["threshold"]) == (about["policy"], line)
    score = table["score"].to_numpy()
    of_review = int((score[verdict == "review"] >= np.float32(line)).sum())
    assert metrics["review_kept"] == of_review
    np.testing.assert_array_equal(
        verdict[verdict != "review"] == "keep", score[verdict != "review"] >= np.float32(line)
    )

    for name, file in zip(VERDICTS, ("kept", "discarded", "review"), strict=True):
        assert len(image_table(parse(out / f"{file}.star"), "particle")) == counts[name]
        assert re.search(rf"\b{name} +{counts[name]:,}\b", shown)
    assert re.search(rf"of review, kept by the threshold +{of_review}\b", shown)
    assert f"{about['policy']}, {line:.4g}" in shown

    page = (out / "report.html").read_text()
    assert (
        f"{counts['keep']:,} of {len(table):,} images are kept, {counts['review']:,} wait" in page
    )
    assert f"at or above {line:.3f} keeps (policy {about['policy']})" in page
    assert counts["review"] <= np.ceil(0.05 * len(table))
    if policy == "share=0.3":
        assert counts["keep"] == 53  # 52.5, rounded up
    if policy in (None, "each"):
        assert counts["review"] > 0
        assert f"{of_review:,} of {counts['review']:,}" in page


def test_what_is_expected_to_be_lost_is_one_number_on_page_and_selection_page(
    project: Path, tiny_ensemble: Path, class_ensemble: Path, tmp_path: Path
) -> None:
    classes = write_class_job(tmp_path)
    both: tuple[str | Path, ...] = ("--class-ensemble", class_ensemble)
    for source, ensemble, more in (
        (project, tiny_ensemble, ()),
        (classes, class_ensemble, ()),
        (classes, tiny_ensemble, both),
    ):
        out = tmp_path / f"out-{len(more)}-{ensemble.name}"
        judged(source, "--out", out, "--ensemble", ensemble, *more)
        table = open_table(out)
        with closing(Clicks(out, len(table), table.digest)) as clicks:
            found = Selection(table, clicks).expected(clicks.state)
        words = f"{percent(found.loss)} of the good lost, {percent(found.junk)} of the kept junk"
        assert words in (out / "report.html").read_text()


def test_of_few_images_no_share_of_good_ones_is_estimated_and_of_many_with_what_chance_does(
    project: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    shown = judged(project, "--out", tmp_path / "many", "--ensemble", tiny_ensemble)
    assert re.search(r"good images, estimated +[\d.]+% \(\d+% to \d+% by chance alone\)", shown)
    few = write_project(tmp_path / "few", (50,))
    assert "estimated" not in judged(few, "--out", tmp_path / "out", "--ensemble", tiny_ensemble)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["prevalence"] is None
    assert "good images, estimated" not in (tmp_path / "out/report.html").read_text()


def test_a_policy_that_an_ensemble_does_not_know_is_one_sentence(
    project: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    for policy, words in (
        ("expected", "has no policy expected"),
        ("most", "there is no policy 'most'; give expected, each, a threshold from 0 to 1"),
        ("budget=3", "there is no policy 'budget=3'; give expected, each, a threshold from 0 to 1"),
        ("share=3", "or the share of images to keep (share=0.3)."),
        ("threshold", "a threshold from 0 to 1 (threshold=0.7) or the share"),
        ("each=1", "there is no policy 'each=1'"),
    ):
        out = tmp_path / policy
        asked = [project, "--out", out, "--ensemble", tiny_ensemble, "--policy", policy]
        done = CliRunner().invoke(app, ["classify", *map(str, asked)])
        assert done.exit_code == 2
        assert words in " ".join(done.output.split())
        assert "Traceback" not in done.output
        assert "value error" not in done.output.lower()
        assert not out.exists()
