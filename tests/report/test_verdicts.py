"""The page beside verdicts on classes has what a person chooses classes by, in the order of choosing."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq

from cryoray.settings import ClassifySettings, Settings
from cryoray.verbs.classify import classify
from tests.classes import write_class_job
from tests.examples import save_ensemble

COUNTS = (7, 4, 0, 9, 2, 5, 3, 8, 6, 1, 4, 7)
TILE = re.compile(
    r'<li><img src="[^"]*" alt="(\d+)@[^"]*" title="[^"]*">((?:<span>[^<]*</span>)+)</li>'
)


def test_classes_are_shown_best_first_with_number_particles_resolution_and_score(
    tmp_path: Path,
) -> None:
    job = write_class_job(tmp_path, COUNTS)
    save_ensemble(tmp_path / "ensemble", "class2d", threshold=1e-6)
    chosen = ClassifySettings(ensemble=str(tmp_path / "ensemble"), review=False)
    out = classify(job, tmp_path / "out", Settings(classify=chosen))
    judged = pq.read_table(out / "verdicts.parquet").to_pylist()
    page = (out / "report.html").read_text()
    strips = dict(zip(("keep", "discard"), page.split('<div class="strip ')[1:], strict=True))
    for verdict, strip in strips.items():
        those = [one for one in judged if one["verdict"] == verdict]
        those.sort(key=lambda one: -one["score"])
        shown = [(int(n), re.findall("<span>([^<]*)", lines)) for n, lines in TILE.findall(strip)]
        assert shown == [
            (
                number,
                [
                    f"class {number}",
                    f"{COUNTS[number - 1]} particle{'' if COUNTS[number - 1] == 1 else 's'}",
                    f"{12 + number}.5\N{NO-BREAK SPACE}Å",
                    f"score {one['score']:.2f}",
                ],
            )
            for one in those
            if (number := int(one["image"][:6]))
        ]
    section = re.split(r"<h2[^>]*>Not judged<", page)[1].split("</section>")[0]
    assert re.findall("<td>([^<]*)", section.replace('<th scope="row">', "<td>")) == [
        "class 3",
        "empty class, no particles",
    ]
    (lost,) = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert (lost["row"], lost["reason"]) == (3, "empty class, no particles")
