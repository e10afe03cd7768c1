"""Profiles and what an ensemble makes of them: one project's images change its scores, nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.boosting.prevalence import log_odds
from cryoray.errors import EnsembleError, InputError
from cryoray.metrics.accuracy import auroc
from cryoray.models.context import Head, HeadConfig, directions, moments, nearness
from cryoray.models.ensemble import Ensemble
from cryoray.models.fit_heads import Looked, fit_head
from cryoray.models.fit_shift import cross_fitted, fit_shift
from cryoray.models.profile import MOST, MemberProfile, Profile, sampled
from tests.examples import BOX, FEATURES, particles, save_ensemble, with_heads


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    path = tmp_path_factory.mktemp("judge") / "ensemble"
    save_ensemble(path)
    with_heads(path)
    return Ensemble.load(path)


def images(n: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return particles(n, BOX, seed=seed), np.full((n, len(FEATURES)), 1.5, np.float32)


def test_a_profile_says_the_same_of_the_same_images_whatever_the_batch(judge: Ensemble) -> None:
    some, known = images(150)
    whole = judge.embed(some, known)
    parts = [judge.embed(some[a:b], known[a:b]) for a, b in ((0, 7), (7, 100), (100, 150))]
    for member in range(3):
        for column in range(2):
            joined = torch.cat([part[member][column] for part in parts])
            assert torch.equal(whole[member][column], joined)
    assert judge.profiled(whole).digest == judge.profiled(judge.embed(some, known)).digest
    others = judge.profiled(judge.embed(*images(150, seed=4)))
    assert others.digest != judge.profiled(whole).digest


def test_a_profile_comes_back_from_its_file_and_a_changed_one_is_refused(
    judge: Ensemble, tmp_path: Path
) -> None:
    profile = judge.profiled(judge.embed(*images(40)))
    assert (profile.images, profile.ensemble) == (40, judge.digest)
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile
    text = (tmp_path / "profile.json").read_text()
    (tmp_path / "changed.json").write_text(text.replace('"images":40', '"images":41'))
    with pytest.raises(InputError, match="not what its digest names"):
        Profile.load(tmp_path / "changed.json")
    for name, written, wrong in (
        ("none", "{}", "it has no ensemble"),
        ("cut", text[:99], "it is not whole JSON"),
        ("list", "[]", "it is no table of names and values"),
        (
            "more",
            text.replace('"images"', '"micrographs": 3, "images"'),
            "it has micrographs, which",
        ),
        ("less", text.replace('"images":40', '"images":-1'), "its images makes no sense"),
    ):
        (tmp_path / f"{name}.json").write_text(written)
        with pytest.raises(InputError) as refused:
            Profile.load(tmp_path / f"{name}.json")
        assert f"is not a profile, or is damaged: {wrong}" in str(refused.value)
        assert not set(str(refused.value)) & set("[]{}'")
    assert Profile.load(tmp_path) == profile
    with pytest.raises(InputError, match="no such profile"):
        Profile.load(tmp_path / "absent.json")


def test_within_a_project_scores_and_line_are_those_of_the_context(judge: Ensemble) -> None:
    some, known = images(60)
    profile = judge.profiled(judge.embed(some, known))
    inside = judge.with_profile(profile)
    assert judge.with_profile(None) is judge
    assert (inside.threshold, inside.review) == (0.55, (0.5, 0.6))
    assert (judge.threshold, inside.digest) == (0.5, judge.digest)
    free, within = judge.judge(some, known), inside.judge(some, known)
    assert np.abs(free.d1 - within.d1).max() > 0.05
    assert within.about["profile"] == profile.digest
    assert "profile" not in free.about
    assert "unfamiliar" not in within.about
    # In whatever company: to the last bit.
    alone = inside.judge(some[17:18], known[17:18])
    assert alone.d1[0] == within.d1[17]
    # Another project's profile, other scores of the same images.
    other = judge.with_profile(judge.profiled(judge.embed(*images(60, seed=9)))).judge(some, known)
    assert np.abs(other.d1 - within.d1).max() > 1e-3
    decided = judge.without_review().with_profile(profile)
    assert decided.review == (0.55, 0.55)


def test_an_unfamiliar_profile_leaves_the_context_free_score_and_is_named(
    judge: Ensemble, tmp_path: Path
) -> None:
    save_ensemble(tmp_path / "strict")
    with_heads(tmp_path / "strict", familiar=0.0)
    strict = Ensemble.load(tmp_path / "strict")
    some, known = images(50)
    profile = strict.profiled(strict.embed(some, known))
    inside = strict.with_profile(profile)
    free, said = strict.judge(some, known), inside.judge(some, known)
    assert said.about["profile"] == profile.digest
    assert said.about["unfamiliar"] == "yes"
    assert inside.threshold == strict.threshold
    np.testing.assert_array_equal(free.score, said.score)
    with pytest.raises(EnsembleError, match="is of the ensemble"):
        judge.with_profile(profile)


def test_an_ensemble_without_heads_judges_as_before(tmp_path: Path, judge: Ensemble) -> None:
    plain = save_ensemble(tmp_path / "plain")
    assert not plain.takes_profile
    profile = judge.profiled(judge.embed(*images(10)))
    assert plain.with_profile(profile) is plain


def test_a_profile_rests_on_rows_evenly_spread() -> None:
    assert sampled(np.arange(MOST)).tolist() == list(range(MOST))
    rows = sampled(np.arange(0, 10 * MOST, 2))
    assert len(rows) == MOST
    assert (rows[0], rows[-1]) == (0, 10 * MOST - 2)
    assert np.diff(rows).max() <= 12


def test_a_head_without_a_context_takes_nothing_from_it() -> None:
    head = Head(6, HeadConfig()).eval()
    seen, logit = torch.randn(1, 5, 6), torch.randn(1, 5)
    nothing = moments(torch.empty(0, 6), torch.empty(0))
    elsewhere = nothing._replace(mean=nothing.mean + 3, quantiles=nothing.quantiles - 2)
    torch.testing.assert_close(head(seen, logit, nothing), head(seen, logit, elsewhere))
    some = moments(seen[0] + 4, logit[0])
    assert not torch.allclose(head(seen, logit, nothing), head(seen, logit, some))


def test_a_profile_like_those_of_training_is_nearer_than_one_unlike_them() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 40, generator=generator)
    training = torch.randn(200, 3, generator=generator) @ basis
    centre, axes = directions(training, 3)
    points = (training - centre) @ axes
    torch.testing.assert_close(points.std(0), torch.ones(3), atol=0.05, rtol=0)
    near = nearness((torch.randn(20, 3, generator=generator) @ basis - centre) @ axes, points)
    far = nearness((6 * torch.randn(20, 3, generator=generator) @ basis - centre) @ axes, points)
    assert near.median() < far.median() / 3


def test_a_head_learns_what_is_good_within_a_project_and_not_elsewhere() -> None:
    """Good images are brighter than junk of the same project, and no brighter than junk of others."""
    rng = np.random.default_rng(0)

    def project(n: int) -> tuple[torch.Tensor, np.ndarray]:
        keep = rng.random(n) < rng.uniform(0.2, 0.8)
        brightness = rng.normal(0, 4) + np.where(keep, 1, -1) + rng.normal(0, 0.5, n)
        return torch.tensor(np.stack([brightness, rng.normal(size=n)], 1)).float(), keep

    shown = [project(60) for _ in range(80)]
    seen, keep = torch.cat([s for s, _ in shown]), np.concatenate([k for _, k in shown])
    rows = np.split(np.arange(len(keep)), 80)
    looked = Looked(seen, seen[:, 0], keep, np.ones(len(keep), np.float32), rows)
    head = fit_head(looked, HeadConfig(), seed=1, steps=120)
    twice = [fit_head(looked, HeadConfig(), seed=1, steps=3).state_dict() for _ in range(2)]
    assert all(torch.equal(weights, twice[1][name]) for name, weights in twice[0].items())
    new = [project(60) for _ in range(30)]
    truth = np.concatenate([k for _, k in new]).astype(int)
    with torch.inference_mode():
        said = [
            np.concatenate(
                [head(s[None], s[None, :, 0], moments(s[:n], s[:n, 0]))[0].numpy() for s, _ in new]
            )
            for n in (0, 40)
        ]
    without, with_context = (auroc(truth, each) for each in said)
    assert without < 0.75
    assert with_context > 0.95


def test_numbers_that_no_network_could_take_are_no_profile(judge: Ensemble) -> None:
    made = judge.profiled(judge.embed(*images(20)))
    for change in ({"images": 10**400}, {"members": (_with(made, quantiles=(1e308,) * 5),) * 3}):
        unnamed = made.model_copy(update=change)
        with pytest.raises(ValueError, match=r"too large|less than"):
            Profile.parse(unnamed.named().model_dump_json())


def _with(profile: Profile, **values: tuple[float, ...]) -> MemberProfile:
    return profile.members[0].model_copy(update=values)


def test_every_member_is_moved_by_what_the_profile_says_and_adapting_keeps_that(
    judge: Ensemble,
) -> None:
    some, known = images(60)
    profile = judge.profiled(judge.embed(some, known))
    assert judge.heads is not None
    by = judge.heads.moved(profile.moments())
    assert 0.01 < abs(by) <= 2
    inside = judge.with_profile(profile)
    for member, calibration in enumerate(inside.manifest.calibration):
        expected = inside.logits(some, known)[:, member] + 0.1 - by
        assert calibration.offset == pytest.approx(0.1 - by)
        np.testing.assert_allclose(
            log_odds(inside.judge(some, known, everyone=True).judged[f"d{member + 1}"].to_numpy()),
            expected,
            atol=1e-3,
        )
    # Lines that were found within the project are found there again, and move along in another.
    again = Ensemble(
        judge.with_lines(inside.manifest, inside), judge.networks, heads=judge.heads
    ).with_profile(profile)
    offsets = [c.offset for c in again.manifest.calibration]
    assert offsets == pytest.approx([c.offset for c in inside.manifest.calibration], abs=1e-12)


def projects(
    n: int, seed: int
) -> tuple[torch.Tensor, list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Of n projects a value that tells how far apart good and junk are, log-odds, labels, and the gap."""
    rng = np.random.default_rng(seed)
    gap = rng.choice([1.0, 4.0], n)
    keep = [rng.random(80) < 0.6 for _ in range(n)]
    x = [rng.normal(0, 1, 80) + g * (k - 0.5) for g, k in zip(gap, keep, strict=True)]
    values = np.stack([gap + rng.normal(0, 0.1, n), rng.normal(0, 1, n)], 1)
    return torch.tensor(values).float(), x, keep, gap


def test_the_line_is_higher_where_good_and_bad_are_told_apart() -> None:
    values, x, keep, gap = projects(60, 0)
    moved = cross_fitted(values, x, keep, np.arange(60) % 5)
    assert moved[gap == 4].mean() > moved[gap == 1].mean() + 0.5
    # More is judged right than by any one line that loses as much.
    lost = np.mean([np.mean(a[k] < m) for a, k, m in zip(x, keep, moved, strict=True)])
    one = max(
        at
        for at in np.linspace(-5, 3, 400)
        if np.mean([np.mean(a[k] < at) for a, k in zip(x, keep, strict=True)]) <= lost
    )
    right, before = (
        np.mean([np.mean((a >= m) == k) for a, k, m in zip(x, keep, line, strict=True)])
        for line in (moved, np.full(60, one))
    )
    assert right > before + 0.01


def test_a_shift_is_the_same_each_time_bounded_and_small_for_few_images() -> None:
    values, x, keep, _ = projects(40, 1)
    # A project of junk alone counts, though there is nothing to lose.
    keep[0][:] = False
    shift = fit_shift(values, x, keep)
    again = fit_shift(values, x, keep)
    assert torch.equal(shift.weight, again.weight)
    many = torch.tensor([1e6])
    extreme = [shift(values.new_tensor([[at, 0.0]]), many)[0] for at in (-1e6, 1e6)]
    for at in extreme:
        assert shift.ends[0] <= at <= shift.ends[1]
    far = [abs(shift(values[5:6], torch.tensor([n]))[0] - shift.offset) for n in (0.0, 8.0, 1e6)]
    assert far[0] == 0
    assert far[1] < far[2]


def test_a_profile_of_another_project_is_told_from_one_of_a_part_of_this(
    tiny_ensemble: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_ensemble, tmp_path / "ensemble")
    judge = with_heads(folder)
    assert judge.heads is not None
    some, known = images(300, seed=5)
    whole, part, few = (judge.profiled(judge.embed(some[:n], known[:n])) for n in (300, 150, 40))
    other = judge.profiled(judge.embed(0.3 * some + 1.0, known))
    near, far = (judge.heads.apart(whole.moments(), one.moments()) for one in (part, other))
    assert near < far / 2
    between = shutil.copytree(tiny_ensemble, tmp_path / "between")
    strict = with_heads(between, familiar=far / 2)
    assert strict.unlike(whole, other)
    assert not strict.unlike(whole, part)
    assert not strict.unlike(few, other)  # too few to tell
