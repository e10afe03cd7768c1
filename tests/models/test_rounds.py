"""Three rounds over a fit callable."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cryoray.boosting.filtering import folds_of_groups
from cryoray.boosting.voting import score
from cryoray.models.fit import score_rows
from cryoray.models.rounds import LocalFits, boost, record
from cryoray.settings import FitSettings, TrainSettings
from tests.models.toy import TINY, ToyExamples

SETTINGS = TrainSettings(fit=FitSettings(epochs=3, batch=24, learning_rate=1e-2), folds=2)


def rounds(examples, fits, store=None, events=None):
    return boost(
        examples,
        {"project": examples.groups, "micrograph": examples.groups},
        folds_of_groups(examples.groups, 2, 0),
        SETTINGS,
        fit_all=fits,
        held_out=fits.held_out,
        members=TINY,
        store=store,
        on_event=(events.append if events is not None else lambda event: None),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    examples = ToyExamples(n=400)
    fits = LocalFits(examples, SETTINGS.fit)
    store = tmp_path_factory.mktemp("rounds")
    return examples, fits, store, rounds(examples, fits, store)


def test_the_vote_judges_examples_it_has_not_seen(trained):
    _, _, _, boosted = trained
    new = ToyExamples(n=300, seed=9)
    p = [
        c(score_rows(n, new, np.arange(300)))
        for n, c in zip(boosted.networks, boosted.calibration, strict=True)
    ]
    assert np.mean((score(*p) >= boosted.point.threshold) == new.labels) > 0.75


def test_every_prediction_comes_from_a_network_that_did_not_train_on_it(trained):
    examples, fits, _, _ = trained
    fold_of = folds_of_groups(examples.groups, 2, 0)
    seen = {}

    def spy(tasks):
        for task in tasks:
            seen[task.name] = set(np.concatenate([s.rows for s in task.sampler.strata]).tolist())
        return fits(tasks)

    spy.held_out = fits.held_out
    rounds(examples, spy)
    for member in ("d1", "d2", "d3"):
        for fold in (0, 1):
            assert not seen[f"{member}-fold{fold}"] & set(np.flatnonzero(fold_of == fold).tolist())


def test_finished_rounds_are_not_redone(trained):
    examples, fits, store, boosted = trained
    refit = []

    def only_d3(tasks):
        refit.extend(task.name for task in tasks)
        return fits(tasks)

    only_d3.held_out = fits.held_out
    (store / "d3" / "held-out.npy").unlink()
    again = rounds(examples, only_d3, store)
    assert refit == ["d3-fold0", "d3-fold1", "d3-final"]
    np.testing.assert_array_equal(again.probabilities, boosted.probabilities)
    assert again.point == boosted.point


def test_events_tell_what_each_round_found(trained):
    examples, fits, store, _ = trained
    events = []
    rounds(examples, fits, store, events)
    assert [e.data["member"] for e in events] == ["d1", "d2", "d3"]
    assert all(0 <= e.data["error"] <= 0.5 for e in events)


def test_the_bound_table_and_the_curves_are_on_record(trained):
    examples, fits, _, boosted = trained
    names = np.array([f"{i:06d}@x.mrcs" for i in range(len(examples.labels))], object)
    written = json.loads(record(boosted, fits.curves[:9], names))
    assert {p["member"] for p in written["curves"]} == {"d1"}
    assert {p["fold"] for p in written["curves"]} == {0, 1, None}
    bound = written["bound"]
    assert bound["worst"] == max(bound["d1"], bound["d2"], bound["d3"])
    assert bound["limit"] == pytest.approx(3 * bound["worst"] ** 2 - 2 * bound["worst"] ** 3)
    assert len(written["suspected_labels"]) == boosted.suspects.sum()
