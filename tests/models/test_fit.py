"""One member fitted: it learns, it repeats itself, it resumes, and it knows no worker."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from cryoray.boosting.filtering import everything
from cryoray.models.fit import Epoch, Fit, FitTask, Lane, score_rows
from cryoray.settings import FitSettings
from tests.models.toy import TINY, ToyExamples

pytestmark = pytest.mark.long

SETTINGS = FitSettings(epochs=4, batch=24, learning_rate=1e-2)


def task(examples, held_out=(), seed=3):
    rows = np.setdiff1d(np.arange(len(examples.labels)), held_out)
    sampler = everything(len(examples.labels)).within(rows)
    return FitTask("d1-fold0", TINY[0], sampler, np.asarray(held_out, np.int64), seed)


def run(fit, epochs=99):
    points: list[Epoch] = []
    while not fit.done and len(points) < epochs:
        points.append(fit.run_epoch())
    return points


@pytest.fixture(scope="module")
def examples():
    return ToyExamples()


@pytest.fixture(scope="module")
def weights(examples):
    fit = Fit(task(examples), examples, SETTINGS)
    run(fit)
    return fit.result().state_dict()


def test_learns_what_it_was_not_shown(examples):
    held_out = np.arange(0, 240, 4)
    fit = Fit(task(examples, held_out), examples, SETTINGS.model_copy(update={"epochs": 10}))
    points = run(fit)
    assert points[-1].loss < points[0].loss
    assert points[-1].val_accuracy >= 0.85
    assert points[-1].val_loss < 0.45
    assert [p.epoch for p in points] == list(range(1, 11))
    logit = score_rows(fit.result(), examples, held_out, batch=7)
    assert np.mean((logit > 0) == examples.labels[held_out]) == pytest.approx(
        points[-1].val_accuracy
    )


def test_the_same_seed_gives_the_same_weights_and_another_one_others(examples, weights):
    again, other = (
        Fit(task(examples), examples, SETTINGS),
        Fit(task(examples, seed=4), examples, SETTINGS),
    )
    run(again)
    run(other)
    assert all(torch.equal(weights[k], v) for k, v in again.result().state_dict().items())
    assert not torch.equal(weights["stem.0.weight"], other.result().state_dict()["stem.0.weight"])


def test_a_fit_that_stopped_goes_on_to_the_same_weights(examples, weights):
    stopped = Fit(task(examples), examples, SETTINGS)
    run(stopped, epochs=2)
    disk = io.BytesIO()
    torch.save(stopped.state_dict(), disk)
    disk.seek(0)
    resumed = Fit(task(examples), examples, SETTINGS)
    resumed.load_state_dict(torch.load(disk, weights_only=True))
    assert len(run(resumed)) == 2
    assert all(torch.equal(weights[k], v) for k, v in resumed.result().state_dict().items())


def test_two_workers_slices_make_up_the_one_workers_batch(examples):
    """The mean of the two workers' first gradients is the gradient of one worker."""

    def gradients(rank, size):
        lane = Lane(rank, size)
        fit = Fit(task(examples), examples, SETTINGS, lane=lane)
        half = SETTINGS.batch // size
        fit._step(0, np.arange(24), slice(rank * half, (rank + 1) * half))
        grads = [p.grad for p in fit.network.parameters()]
        return [grad.clone() for grad in grads if grad is not None]

    # The step clips gradients; without it they would add up exactly.
    whole = torch.cat([g.flatten() for g in gradients(0, 1)])
    parts = [torch.cat([g.flatten() for g in gradients(r, 2)]) for r in (0, 1)]
    mean = (parts[0] + parts[1]) / 2
    assert torch.nn.functional.cosine_similarity(whole, mean, dim=0) > 0.98


def test_learning_rate_rises_then_falls_to_zero(examples):
    fit = Fit(task(examples), examples, SETTINGS)
    rates = [fit._learning_rate(step) for step in range(40)]
    assert rates[0] < rates[3] == max(rates) == SETTINGS.learning_rate
    assert rates[-1] < 0.01 * SETTINGS.learning_rate


def test_the_network_that_ours_is_compared_with_learns_by_the_same_loop(examples):
    from benchmarks.accuracy.boosting import RANKER, RankerFit

    all_rows = everything(len(examples.labels))
    settings = SETTINGS.model_copy(update={"epochs": 8, "learning_rate": 1e-3})
    nothing = np.empty(0, np.int64)
    fit = RankerFit(FitTask("ranker-final", RANKER, all_rows, nothing, 0), examples, settings)
    points = run(fit)
    assert points[-1].loss < 0.9 * points[0].loss
