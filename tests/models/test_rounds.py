"""Three rounds over a fit callable."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cryoray.boosting.filtering import folds_of_groups
from cryoray.boosting.voting import score
from cryoray.models.fit import score_rows
from cryoray.models.rounds import LocalFits, boost, record
from cryoray.records import Event
from cryoray.settings import FitSettings, TrainSettings
from tests.models.toy import TINY, ToyExamples

pytestmark = pytest.mark.long

SETTINGS = TrainSettings(fit=FitSettings(epochs=3, batch=24, learning_rate=1e-2), folds=2)


def rounds(examples, fits, store=None, events=None, times=None):
    return boost(
        examples,
        {"project": examples.groups, "micrograph": examples.groups},
        folds_of_groups(examples.groups, 2, 0),
        SETTINGS,
        fit_all=fits,
        held_out=fits.held_out,
        members=TINY,
        times=times,
        store=store,
        on_event=(events.append if events is not None else lambda event: None),
    )


class Fits(LocalFits):
    """Fits for real, and remembers what each task was shown."""

    def __init__(self, examples):
        super().__init__(examples, SETTINGS.fit)
        self.shown, self.drawn = {}, {}

    def __call__(self, tasks):
        for task in tasks:
            self.shown[task.name] = {int(r) for s in task.sampler.strata for r in s.rows}
            self.drawn[task.name] = task.sampler.draw(0, 0)
        return super().__call__(tasks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    examples = ToyExamples()
    fits = Fits(examples)
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
    for member in ("d1", "d2", "d3"):
        for fold in (0, 1):
            held_out = set(np.flatnonzero(fold_of == fold).tolist())
            assert fits.shown[f"{member}-fold{fold}"].isdisjoint(held_out)
        assert fits.shown[f"{member}-final"] & held_out


def test_what_is_repeated_is_learned_from_more_often_and_counted_once(trained):
    examples, _, _, once = trained
    times = np.where(np.arange(len(examples.labels)) < 40, 5, 1)
    fits = Fits(examples)
    boosted = rounds(examples, fits, times=times)
    assert len(fits.drawn["d1-final"]) == times.sum()
    assert np.bincount(fits.drawn["d1-final"])[:41].tolist() == [5] * 40 + [1]
    assert boosted.point.groups == once.point.groups
    assert boosted.probabilities.shape == once.probabilities.shape
    # Its achieved rate is that of the examples, not of what was drawn.
    kept = score(*boosted.probabilities.T)[examples.labels == 1]
    assert boosted.point.achieved == pytest.approx(np.mean(kept < boosted.point.threshold))


def test_finished_rounds_are_not_redone(trained):
    examples, _, store, boosted = trained
    again = Fits(examples)
    (store / "d3" / "held-out.npy").unlink()
    redone = rounds(examples, again, store)
    assert list(again.shown) == ["d3-fold0", "d3-fold1", "d3-final"]
    np.testing.assert_array_equal(redone.probabilities, boosted.probabilities)
    assert redone.point == boosted.point


def test_events_tell_what_each_round_found(trained):
    examples, fits, store, _ = trained
    events: list[Event] = []
    rounds(examples, fits, store, events)
    assert [e.data["member"] for e in events] == ["d1", "d2", "d3"]
    assert all(0 <= float(str(e.data["error"])) <= 1 for e in events)
    assert events[0].data["epoch_size"] == len(examples.labels)


def test_the_bound_table_and_the_curves_are_on_record(trained):
    examples, fits, _, boosted = trained
    names = np.array([f"{i:06d}@x.mrcs" for i in range(len(examples.labels))], object)
    written = json.loads(record(boosted, fits.curves[:9], names))
    assert {p["member"] for p in written["curves"]} == {"d1"}
    assert {p["fold"] for p in written["curves"]} == {0, 1, None}
    bound = written["bound"]
    assert bound["worst"] == max(bound["d1"], bound["d2"], bound["d3"])
    worst = min(bound["worst"], 0.5)  # beyond chance there is no bound
    assert bound["limit"] == pytest.approx(3 * worst**2 - 2 * worst**3)
    assert len(written["suspected_labels"]) == boosted.suspects.sum()
