"""How often the drift alarm is false, and how soon it is right: on simulated sessions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cryoray.session.drift import Detector, Drift
from cryoray.session.ledger_records import Micrograph

RUN_LENGTH = 4000
BASELINE = {
    "prevalence": 0.6,
    "features": {"defocus": [1.5, 0.5], "ctf_max_resolution": [1.4, 0.3]},
}


def session(
    seed: int, micrographs: int, keep: float = 0.6, *, start: int = 0, defocus: float = 1.5
) -> list[Micrograph]:
    """Micrographs that differ far more than chance would have it: beta-distributed keep rates."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(start, start + micrographs):
        judged = int(rng.integers(20, 400))
        rate = rng.beta(12 * keep, 12 * (1 - keep))
        kept, review = rng.binomial(judged, rate), rng.binomial(judged, 0.05)
        kept = min(kept, judged - review)
        made.append(
            Micrograph(
                name=f"{seed}/{number}",
                square=None,
                hole=None,
                kept=int(kept),
                discarded=int(judged - kept - review),
                review=int(review),
                quarantined=0,
                score=float(np.clip(rate + rng.normal(0, 0.05), 0, 1)),
                defocus=float(rng.choice([-0.5, 0.0, 0.5]) + defocus),
                ctf_resolution=float(math.exp(rng.normal(1.4, 0.3))),
            )
        )
    return made


@pytest.mark.long
def test_false_alarms_are_as_rare_as_promised() -> None:
    alarms, micrographs = 0, 0
    for seed in range(20):
        drift = Drift(BASELINE, run_length=RUN_LENGTH)
        for one in session(seed, 600):
            alarms += len(drift.add(one))
            micrographs += 1
    # At most one in RUN_LENGTH in the mean, 3 in 12,000; a Poisson count of mean 3 exceeds 7 in 1%.
    assert alarms <= 7


@pytest.mark.parametrize(("keep", "within"), [(0.3, 40), (0.85, 60)])
def test_a_change_of_the_keep_rate_is_told_soon_with_its_reason(keep: float, within: int) -> None:
    delays, dated = [], []
    for seed in range(5):
        drift = Drift(run_length=RUN_LENGTH)
        for one in session(seed, 300):
            drift.add(one)
        for number, one in enumerate(session(seed + 100, 200, keep, start=300), 1):
            told = [a for a in drift.add(one) if a.channel == "keep rate"]
            if told:
                delays.append(number)
                assert told[0].against == "past"
                assert (told[0].after < told[0].before) == (keep < 0.6)
                dated.append(abs(told[0].micrographs - number))
                assert "before, in this session, it was" in told[0].reason
                break
    assert len(delays) == 5
    assert np.median(delays) <= within
    assert np.median(dated) <= 10, "it dates the change"


def test_after_an_alarm_the_new_state_is_the_past_and_going_back_is_told_too() -> None:
    drift = Drift(run_length=RUN_LENGTH)
    told = []
    for part, keep in enumerate((0.6, 0.2, 0.6)):
        for one in session(part, 200, keep, start=200 * part):
            told += [a for a in drift.add(one) if a.channel == "keep rate"]
    assert [one.after < one.before for one in told] == [True, False]


def test_a_session_unlike_the_training_data_is_told_from_its_beginning() -> None:
    drift = Drift(BASELINE, run_length=RUN_LENGTH)
    told = [alarm for one in session(3, 120, 0.1) for alarm in drift.add(one)]
    assert {(one.channel, one.against) for one in told} == {
        ("keep rate", "training"),
        ("mean score", "training"),
    }
    assert "share of keep in the ensemble's training was 60%" in told[0].reason


def test_metadata_outside_of_the_training_data_are_told() -> None:
    drift = Drift(BASELINE, run_length=RUN_LENGTH)
    told = [alarm for one in session(4, 60, defocus=6.0) for alarm in drift.add(one)]
    assert [(one.channel, one.against) for one in told][:1] == [("defocus", "training")]
    assert "6" in told[0].reason


def test_a_small_change_is_no_alarm_however_sure_it_is() -> None:
    drift = Drift(run_length=50)
    told = []
    for number in range(3000):
        rate = 600 if number < 1500 else 620
        told += drift.add(
            Micrograph(f"{number}", None, None, rate, 1000 - rate, 0, 0, None, None, None)
        )
    assert told == []


def test_what_a_session_does_not_know_is_not_compared() -> None:
    drift = Drift(BASELINE)
    empty = Micrograph("x", None, None, 0, 0, 0, 5, None, None, None)
    assert [drift.add(empty) for _ in range(200)] == [[]] * 200


def test_the_detector_never_bets_more_than_it_has() -> None:
    """Its mean run length, on bets of mean one, is at least what it is told at."""
    rng = np.random.default_rng(1)
    lengths = []
    for _ in range(60):
        detector, steps = Detector(100.0), 1
        while not detector.add(1.0 + np.array([-1.9, 1.9]) * (rng.random() - 0.5)):
            steps += 1
        lengths.append(steps)
    assert np.mean(lengths) + 3 * np.std(lengths) / np.sqrt(60) >= 100
