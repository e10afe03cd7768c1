"""The report is one page that loads nothing, says what it shows in words, and cannot be injected."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cryoray import report
from cryoray.metrics import accuracy
from cryoray.report import plots
from cryoray.settings import ServeSettings, TrainSettings

pytestmark = pytest.mark.long

VOID = {"meta", "img", "br", "link"}
HOSTILE = "<script>alert(1)</script>\" onload='x"


class Page(HTMLParser):
    """Tags with their attributes and the visible text; fails on tags that do not match."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


RNG = np.random.default_rng(5)
LABELS = RNG.random(400) < 0.7
SCORE = 1 / (1 + np.exp(-np.where(LABELS, 3, -3) - RNG.normal(0, 2, 400)))
GROUPS = np.array([f"project-{i % 4} {HOSTILE}" for i in range(400)], object)
CURVES = [
    {
        "member": member,
        "fold": fold,
        "epoch": epoch,
        "loss": 1 / epoch,
        "val_loss": None if fold is None else 1.2 / epoch,
        "val_accuracy": None if fold is None else 1 - 0.3 / epoch,
        "learning_rate": 1e-3,
        "images_per_second": 900.0,
    }
    for member in ("d1", "d2", "d3")
    for fold in (0, 1, None)
    for epoch in (1, 2, 3)
]
BOUND = {"d1": 0.03, "d2": 0.1, "d3": 0.2, "worst": 0.2, "limit": 0.104, "vote": 0.02}


def strip(images: np.ndarray, title: str = "Kept") -> report.Strip:
    n = len(images)
    return report.Strip(
        title, "keep", images, np.linspace(0, 1, n), [f"{i}@{HOSTILE}" for i in range(n)]
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    numbers = accuracy.metrics(
        LABELS, SCORE, threshold=0.4, review=np.abs(SCORE - 0.4) < 0.1, groups=GROUPS
    )
    sections = [
        report.summary_section(
            "What happened.", {"set": HOSTILE}, {"metrics.json": "numbers"}, {"n": "400"}
        ),
        report.result_section(numbers),
        report.confusion_section(LABELS, SCORE, 0.4),
        report.roc_section(LABELS, SCORE, 0.4, 0.03),
        report.calibration_section(LABELS, SCORE, 0.4, (0.3, 0.5)),
        report.views_section(numbers["by_view"], 0.03),
        report.gallery_section(
            [strip(RNG.normal(size=(6, 128, 128))), strip(np.empty((0, 8, 8)), "Lost")]
        ),
        report.curves_section({"curves": CURVES}),
        report.bound_section(BOUND),
        report.provenance_section(
            f"cryoray evaluate {HOSTILE}",
            [TrainSettings(), ServeSettings(token="s3cret")],
            {"set": "abc"},
        ),
    ]
    return Page(
        report.render(tmp_path_factory.mktemp("report") / "report.html", "Evaluation", sections)
    )


def test_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert not page.all("script")
    assert not page.all("link")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/png;base64,")), address
        assert not re.search(r"url\((?!#)", attributes.get("style") or "")


def test_names_from_files_are_shown_as_they_are(page: Page) -> None:
    assert f"cryoray evaluate {HOSTILE}" in page.text
    assert any(HOSTILE in (image["alt"] or "") for image in page.all("img"))


def test_what_is_seen_is_also_said(page: Page) -> None:
    assert len(page.all("figure")) == 8
    pictures = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(pictures) == 8
    assert all(picture["aria-label"] for picture in pictures)
    assert len(page.all("img")) == 6
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("html")[0]["lang"] == "en"


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    links = [a.get("href") or "" for _, a in page.tags]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_plots_take_every_colour_from_the_page(page: Page) -> None:
    for tag, attributes in page.tags:
        painted = re.findall(r"(?:fill|stroke): ?([^;]+)", attributes.get("style") or "")
        assert all(colour == "none" or colour.startswith("var(--") for colour in painted), (
            tag,
            painted,
        )


def test_numbers_in_plots_and_tables_are_the_measured_ones(page: Page) -> None:
    assert f"AUROC {accuracy.auroc(LABELS, SCORE):.4f}" in page.text
    assert f"ECE {accuracy.reliability(LABELS, SCORE).ece:.3f}" in page.text
    lost = accuracy.confusion(LABELS, SCORE, 0.4).lost
    assert f"lost, {100 * lost / LABELS.sum():.2f}" in page.text
    assert "The vote is within the bound." in page.text
    assert "None." in page.text


def test_settings_are_listed_and_secrets_are_not(page: Page) -> None:
    assert "fit.augment.shift" in page.text
    assert "s3cret" not in page.text


def test_a_full_page_stays_under_three_megabytes(tmp_path: Path) -> None:
    noise = RNG.normal(size=(48, 96, 96))
    sections = [report.gallery_section([strip(noise)], f"Gallery {i}") for i in range(5)]
    assert report.render(tmp_path / "report.html", "Big", sections).stat().st_size < 3e6
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_sections_of_what_is_missing_are_left_out_or_say_so() -> None:
    never_validated = [{**row, "val_loss": None, "val_accuracy": None} for row in CURVES]
    section = report.curves_section({"curves": never_validated})
    assert [block.block for block in section.blocks] == ["figure", "table"]
    assert report.curves_section({"curves": []}).blocks == []
    worse = report.bound_section({**BOUND, "vote": 0.2})
    assert "worse than the bound" in worse.lead
    unlabelled = report.scores_section(SCORE, None, None)
    (figure,) = (block for block in unlabelled.blocks if isinstance(block, report.Figure))
    assert "400 images" in figure.caption


def test_plots_survive_labels_of_one_kind_and_a_single_image() -> None:
    for labels in (np.ones(1, bool), np.zeros(1, bool)):
        score = np.array([0.5])
        for svg in (
            plots.trade(labels, score, 0.5, 0.03, "a"),
            plots.reliability(labels, score, "b"),
            plots.scores(score, labels, 0.5, (0.5, 0.5), "c"),
        ):
            assert svg.startswith("<svg")


def test_long_names_lose_their_middle_and_leave_room_for_the_plot() -> None:
    names = [f"{'very-' * 30}long-{i}" for i in range(2)]
    svg = plots.rates(names, np.array([0.1, 0.0]), np.array([50, 50]), 0.03, "a")
    assert "…" in svg
    assert "long-1" in svg


def test_importing_reports_imports_nothing_that_draws() -> None:
    code = (
        "import sys; from cryoray import report; import cryoray.report.verdicts, cryoray.report.blocks;"
        "print(*sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_what_reports_export_is_there() -> None:
    assert all(getattr(report, name) is not None for name in report.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        report.nothing  # noqa: B018


def test_a_page_about_a_file_of_any_name_is_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"f\xfcr/particles.star")
    section = report.table_section("Sources", ("file",), [(name,)])
    page = report.render(tmp_path / "report.html", f"About {name}", [section])
    assert r"f\udcfcr/particles.star" in page.read_text(encoding="utf-8")
