"""What is kept by line and clicks, what may be expected of it, and what is saved."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryosparc.dataset import Dataset

from cryoray.boosting.adaptation import Change
from cryoray.boosting.expected import expected
from cryoray.errors import FormatError, InputError
from cryoray.formats.selection import read_selection
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.formats.verdicts import write_verdicts
from cryoray.records import VERDICTS, Verdicts
from cryoray.select import saving
from cryoray.select.clicks import Clicks
from cryoray.select.selection import TWENTY, Judge, Selection
from cryoray.select.table import Table, open_table
from tests import examples
from tests.classes import COUNTS, write_class_job
from tests.formats.files import write_cs_job
from tests.select.conftest import THRESHOLD, judged


def selection_of(folder: Path, judge: Judge | None = None) -> Selection:
    table = open_table(folder)
    return Selection(table, Clicks(folder, len(table), table.digest), judge)


@pytest.fixture
def selection(particles: Path) -> Iterator[Selection]:
    made = selection_of(particles)
    yield made
    made.clicks.close()


def test_verdicts_and_their_source_are_found_again_row_for_row(particles: Path) -> None:
    table = open_table(particles)
    assert len(table) == 40
    assert len(table.source) == 42
    images = pq.read_table(particles / "verdicts.parquet")["image"].to_pylist()
    assert table.source.images[table.verdicts.rows].tolist() == images
    assert dict(table.verdicts.quarantined) == {3: "cannot be read", 17: "cannot be read"}
    assert table.threshold == THRESHOLD
    assert table.reasons[0] == ["empty"]
    assert table.micrographs[0] == ["mic_1.mrc", "mic_2.mrc"]


def test_a_source_that_moved_is_given_and_another_one_refused(
    particles: Path, tmp_path: Path
) -> None:
    shutil.move(tmp_path / "project", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is no longer there.*--source"):
        open_table(particles)
    moved = tmp_path / "elsewhere/particles.star"
    assert len(open_table(particles, moved)) == 40
    text = moved.read_text().replace("000001@Extract/job001/mic_1", "000002@Extract/job001/mic_1")
    moved.write_text(text)
    with pytest.raises(FormatError, match="has other images than were judged"):
        open_table(particles, moved)


def test_a_folder_that_is_none_or_holds_several_says_so(tmp_path: Path, particles: Path) -> None:
    with pytest.raises(InputError, match=r"holds no verdicts\.parquet"):
        open_table(tmp_path / "project")
    with pytest.raises(InputError, match=r"the verdicts of 1 sources \(verdicts\)"):
        open_table(tmp_path)


def test_columns_arrive_as_they_are(particles: Path) -> None:
    table = open_table(particles)
    data = table.packed(table.verdicts.score)
    length = int.from_bytes(data[:4], "little")
    head, at, columns = json.loads(data[4 : 4 + length]), 4 + length, {}
    for name, kind in head["columns"]:
        assert at % 8 == 0
        columns[name] = np.frombuffer(data, f"<{kind}", head["n"], at)
        at += -(-columns[name].nbytes // 8) * 8
    assert at == len(data)
    assert columns["score"].tolist() == table.verdicts.score.tolist()
    assert [VERDICTS[v] for v in columns["verdict"]] == table.verdicts.verdict.tolist()
    assert columns["order"].tolist() == list(range(40))
    assert (
        columns["resolution"][:5].tolist()
        == table.source.metadata["rlnCtfMaxResolution"][table.verdicts.rows[:5]]
        .astype("f4")
        .tolist()
    )


def test_a_ctf_resolution_that_relion_does_not_know_is_no_number(tmp_path: Path) -> None:
    star = examples.write_project(tmp_path / "project", (6,))
    star.write_text(re.sub(r" [45]$", " 999.0", star.read_text(), flags=re.M))
    table = open_table(judged(open_source(star), tmp_path / "verdicts"))
    written = table.source.metadata["rlnCtfMaxResolution"]
    np.testing.assert_array_equal(table.resolution, np.where(written == 999, np.nan, written))
    assert 0 < np.isnan(table.resolution).sum() < len(table)


def test_the_line_decides_and_a_person_overrides_it(selection: Selection) -> None:
    clicks, scores = selection.clicks, selection.table.verdicts.score
    assert selection.keep(clicks.state).tolist() == (scores >= THRESHOLD).tolist()
    clicks.draw("a", 0.7)
    clicks.turn("a", [0], 0)
    clicks.turn("a", [39], 1)
    keep = selection.keep(clicks.state)
    assert (bool(keep[0]), bool(keep[39])) == (False, True)
    assert keep[1:39].tolist() == (scores[1:39] >= np.float32(0.7)).tolist()


def test_particles_of_a_discarded_class_stay_discarded_wherever_the_line_is(
    particles: Path,
) -> None:
    table = open_table(particles)
    reason = table.verdicts.reason.copy()
    verdict = table.verdicts.verdict.copy()
    reason[:3], verdict[:3] = "its class 7 is discarded", "discard"
    made = table.verdicts.with_column("reason", reason).with_column("verdict", verdict)
    write_verdicts(particles, table.source, made)
    chosen = selection_of(particles)
    chosen.clicks.draw("a", 0.0)
    assert np.flatnonzero(~chosen.keep(chosen.clicks.state)).tolist() == [0, 1, 2]
    assert "its class is discarded" in chosen.table.reasons[0]
    chosen.clicks.turn("a", [1], 1)
    assert chosen.keep(chosen.clicks.state)[1]
    chosen.clicks.close()


def test_what_is_expected_is_what_calibrated_scores_say() -> None:
    score, weight = np.array([0.9, 0.6, 0.2]), np.array([10.0, 1.0, 5.0])
    nobody = np.full(3, -1, np.int8)
    found = expected(score, nobody, np.array([True, True, False]), weight)
    assert (found.kept, found.particles, found.all_particles) == (2, 11, 16)
    assert found.loss == pytest.approx(1.0 / 10.6)
    assert found.junk == pytest.approx(1.4 / 11)
    said = np.array([-1, -1, 1], np.int8)
    assert expected(score, said, np.ones(3, bool), weight).junk == pytest.approx(1.4 / 16)
    nothing = expected(score, nobody, np.zeros(3, bool), weight)
    assert (nothing.loss, nothing.junk) == (1.0, 0.0)


def test_expectations_hold_where_scores_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    score = rng.beta(0.5, 0.5, 50_000)
    good = rng.random(len(score)) < score
    keep = score >= 0.3
    found = expected(score, np.full(len(score), -1, np.int8), keep, np.ones(len(score)))
    assert found.loss == pytest.approx(float((good & ~keep).sum() / good.sum()), abs=0.005)
    assert found.junk == pytest.approx(float((~good & keep).sum() / keep.sum()), abs=0.005)


def test_teaching_asks_about_twenty_and_learns_from_those_alone(particles: Path) -> None:
    seen: list[int] = []

    def adapt(_: np.ndarray, known: np.ndarray, labels: np.ndarray) -> tuple[Change, float]:
        seen.extend(known.tolist())
        assert labels.tolist() == [True, False]
        return Change(1.0, -2.0), 0.3

    chosen = selection_of(particles, Judge("a judge", {}, adapt))
    clicks = chosen.clicks
    clicks.turn("a", [0], 0)
    asked = chosen.ask("a")
    assert len(set(asked.tolist())) == TWENTY
    assert 0 not in asked
    with pytest.raises(InputError, match="label some"):
        chosen.adapt("a")
    clicks.turn("a", [int(asked[0])], 1)
    clicks.turn("a", [int(asked[1])], 0)
    if asked[0] > asked[1]:
        clicks.turn("a", [int(asked[0])], 0)
        clicks.turn("a", [int(asked[1])], 1)
    before, kept = chosen.scores(clicks.state), chosen.keep(clicks.state)
    told = chosen.adapt("a")
    assert seen == sorted(int(one) for one in asked[:2]), "not what was turned since it was wrong"
    after = chosen.scores(clicks.state)
    assert (after < before).all()
    assert np.argsort(-after, kind="stable").tolist() == np.argsort(-before, kind="stable").tolist()
    assert told["after"]["line"] == pytest.approx(0.3)
    assert told["moved"] == int((chosen.keep(clicks.state) != kept).sum()) > 0
    clicks.undo("a")
    assert chosen.scores(clicks.state).tolist() == before.tolist()
    clicks.close()


def test_teaching_without_the_ensemble_moves_the_line_with_the_scores(selection: Selection) -> None:
    asked = selection.ask("a")
    selection.clicks.turn("a", asked.tolist(), 0)
    kept = int(selection.keep(selection.clicks.state).sum())
    selection.adapt("a")
    state = selection.clicks.state
    assert state.shift < 0
    assert selection.line(state) < THRESHOLD
    assert int(selection.keep(state).sum()) == kept, "ranks and sides are as before"


def test_presets_are_what_verdicts_and_ensemble_say(particles: Path) -> None:
    policies = {"expected": (0.2, "on average"), "each": (0.12, "in most")}
    judge = Judge("a judge", policies, lambda *_: (Change(), 0.5))
    chosen = selection_of(particles, judge)
    presets = chosen.presets()
    lines = {one["name"]: one["line"] for one in presets}
    assert lines == {"as judged": THRESHOLD, "expected": 0.2, "each": 0.12, "even odds": 0.5}
    assert [one["why"] for one in presets[1:3]] == ["on average", "in most"]
    chosen.clicks.close()


def images(file: Path) -> list[str]:
    block = parse(file)["particles"]
    return block.column("rlnImageName").tolist()


def test_both_sides_are_saved_and_every_row_is_accounted_for(
    selection: Selection, particles: Path
) -> None:
    selection.clicks.turn("a", [0, 1], 0)
    selection.clicks.draw("a", 0.5, "even odds")
    out = particles / "selected"
    told = saving.save(selection, out)
    keep = selection.keep(selection.clicks.state)
    names = selection.table.source.images[selection.table.verdicts.rows]
    assert images(out / "kept.star") == names[keep].tolist()
    assert images(out / "discarded.star") == names[~keep].tolist()
    assert images(out / "review.star") == [], "the line decides what nobody did"
    assert len(images(out / "quarantined.star")) == 2
    assert told["kept"] + told["discarded"] + told["quarantined"] == told["rows_in"] == 42
    assert told["turned"] == 2
    assert set(told["files"]) == {one.name for one in out.iterdir()}
    source = selection.table.source
    labels = read_selection(out / saving.LABELS, source)
    assert labels[selection.table.verdicts.rows].tolist() == keep.astype(int).tolist()
    assert (labels == -1).sum() == 2
    turned = read_selection(out / saving.TURNED, source)
    assert turned[selection.table.verdicts.rows[:2]].tolist() == [0, 0]
    assert (turned >= 0).sum() == 2
    about = open_table(out).verdicts.about
    assert (about["threshold"], about["policy"]) == ("0.5", "even odds")


def test_saving_again_replaces_what_was_saved_and_nothing_else(
    selection: Selection, particles: Path
) -> None:
    out = particles / "selected"
    saving.save(selection, out)
    selection.clicks.turn("a", [0], 0)
    again = saving.save(selection, out)
    assert saving.saved(out) == json.loads(json.dumps(again))
    assert not [one for one in particles.iterdir() if one.name.startswith("selected.")]
    assert again["policy"] == selection.table.verdicts.about.get("policy", "as judged")
    selection.clicks.draw("a", 0.625)
    assert saving.save(selection, out)["policy"] == "threshold=0.625"  # drawn by hand
    saving.check(out, selection.table.folder)
    with pytest.raises(InputError, match="is a selection of another folder of verdicts"):
        saving.check(out, particles / "other")
    saving.check(out, particles / "other", replace=True)
    mine = particles / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a folder of a selection"):
        saving.save(selection, mine)
    assert (mine / "notes.txt").read_text() == "mine"


def test_classes_are_saved_as_relions_select_job_does(classes: Path) -> None:
    chosen = selection_of(classes)
    chosen.clicks.draw("a", 0.9)
    chosen.clicks.turn("a", [3], 1)
    told = saving.save(chosen, classes / "selected")
    backup = parse(classes / "selected/backup_selection.star")[""].column("rlnSelected")
    assert backup.tolist() == ["1", "0", "0", "1", "0"]
    assert len(parse(classes / "selected/class_averages.star")[""]) == 2
    assert told["particles"] == COUNTS[0] + COUNTS[3]
    assert len(images(classes / "selected/particles.star")) == told["particles"]
    assert chosen.table.particles.tolist() == list(COUNTS)
    assert chosen.table.number.tolist() == [1, 2, 3, 4, 5]
    found = chosen.expected(chosen.clicks.state)
    assert (found.kept, found.particles) == (2, told["particles"])
    chosen.clicks.close()


def test_cryosparcs_tools_read_the_groups_of_both_sides(tmp_path: Path) -> None:
    job = write_cs_job(tmp_path / "P1", n=8)
    source = open_source(job)
    folder = judged(source, tmp_path / "verdicts")
    chosen = selection_of(folder)
    chosen.clicks.turn("a", [0], 0)
    saving.save(chosen, folder / "selected")
    keep = chosen.keep(chosen.clicks.state)
    for name, side in (("kept", keep), ("discarded", ~keep)):
        dataset = Dataset.load(folder / "selected" / f"{name}.cs")
        assert dataset["uid"].tolist() == source.uid[side].tolist()  # type: ignore[index]
        group = (folder / "selected" / f"{name}.csg").read_text()
        assert f"num_items: {int(side.sum())}" in group
    labels = read_selection(folder / "selected" / saving.LABELS, source)
    assert labels.tolist() == keep.astype(int).tolist()
    chosen.clicks.close()


def test_classes_without_a_verdict_are_listed_with_why(tmp_path: Path) -> None:
    job = write_class_job(tmp_path / "project")
    source = open_source(job / "run_it025_model.star", "class2d")
    lost = [(2, "run_it025_classes.mrcs, image 3: all pixels are 0"), (1, "cannot be read")]
    verdicts = open_table(judged(source, tmp_path / "whole", (1, 2))).verdicts
    verdicts = Verdicts.of(
        verdicts.rows,
        {n: verdicts.column(n) for n in ("score", "verdict", "d1", "d2", "d3", "reason")},
        lost,
    )
    write_verdicts(tmp_path / "verdicts", source, verdicts)
    table = open_table(tmp_path / "verdicts")
    listed = [("class 2", "cannot be read"), ("class 3", "empty class, no particles")]
    assert (table.lost(9), table.lost(1)) == (listed, listed[:1])


def test_a_table_of_no_judged_image_is_opened(tmp_path: Path, particles: Path) -> None:
    source = open_table(particles).source
    nothing = Verdicts.of(
        np.empty(0, np.int64),
        {name: np.empty(0, object if name == "verdict" else np.float32) for name in
         ("score", "verdict", "d1", "d2", "d3")},
        [(row, "no") for row in range(len(source))],
    )  # fmt: skip
    write_verdicts(tmp_path / "none", source, nothing)
    table = open_table(tmp_path / "none")
    assert isinstance(table, Table)
    assert len(table) == 0
    assert table.packed(table.verdicts.score)


def test_damaged_scores_are_set_apart_and_counted_and_the_rest_is_saved(
    particles: Path, tmp_path: Path
) -> None:
    file = particles / "verdicts.parquet"
    table = pq.read_table(file)
    score = table["score"].to_pylist()
    score[1:5] = [float("nan"), None, float("inf"), -0.5]
    place = table.column_names.index("score")
    damaged = table.set_column(place, "score", pa.array(score, pa.float32()))
    pq.write_table(
        damaged.replace_schema_metadata({**table.schema.metadata, "threshold": "nan"}), file
    )
    selection = selection_of(particles)
    try:
        assert len(selection.table) == 36
        reasons = [why for _, why in selection.table.verdicts.quarantined]
        assert reasons.count("its score is not a number from 0 to 1") == 4
        assert np.isfinite(selection.table.threshold)
        assert np.isfinite(selection.presets()[0]["line"])
        saved = saving.save(selection, tmp_path / "selected")
        assert saved["rows_in"] == 42
        assert saved["quarantined"] == 6
        assert saved["kept"] + saved["discarded"] == 36
    finally:
        selection.clicks.close()
    nothing = table.set_column(place, "score", pa.nulls(len(table), pa.float32()))
    pq.write_table(nothing.replace_schema_metadata(table.schema.metadata), file)
    with pytest.raises(FormatError, match="has no score that is a number of 0 to 1"):
        open_table(particles)
    pq.write_table(table.drop_columns(["score"]), file)
    with pytest.raises(FormatError, match="has no column 'score'"):
        open_table(particles)
