"""A policy's line: what an ensemble knows of it, and what it decides of a whole source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.boosting import operating_point
from cryoray.boosting.voting import disagree
from cryoray.errors import EnsembleError
from cryoray.models.card import lines_section
from cryoray.models.decide import decide_source
from cryoray.models.ensemble import DrawnLine, Ensemble
from cryoray.policies import Policy
from cryoray.records import Verdicts
from tests.verbs.untrained import make_ensemble


@pytest.fixture(scope="module")
def drawn() -> dict[Policy, operating_point.Line]:
    rng = np.random.default_rng(3)
    keep = rng.random(12000) < 0.6
    logit = np.where(keep, 1.5, -1.5) + np.repeat(rng.normal(0, 0.4, 60), 200)
    p = 1 / (1 + np.exp(-(logit[:, None] + rng.normal(0, 1, (12000, 3)))))
    names = np.repeat([f"project-{i:02d}" for i in range(60)], 200).astype(object)
    return operating_point.lines(p, keep, {"project": names, "micrograph": names})


@pytest.fixture
def both(drawn, tmp_path: Path) -> Ensemble:
    """An ensemble that has a line of each policy, on disk and back."""
    plain = make_ensemble(tmp_path / "plain")
    main = drawn["expected"]
    plain.manifest = plain.manifest.model_copy(
        update={
            "threshold": main.point.threshold,
            "review": main.review,
            "operating_point": main.point.as_json(),
            "operating_points": {
                name: DrawnLine.model_validate(line.as_json()) for name, line in drawn.items()
            },
            "expectation": ((0.1, 0.0, 0.5), (0.9, 0.4, 0.0)),
        }
    )
    plain.save(tmp_path / "both", "")
    return Ensemble.load(tmp_path / "both")


def test_each_policy_of_an_ensemble_has_its_own_line_and_names_itself(both, drawn):
    assert both.policy == "expected"
    each = Ensemble.load(both.path, policy="each")
    assert each.policy == "each"
    assert each.threshold == drawn["each"].point.threshold < both.threshold
    assert each.review == drawn["each"].review
    assert each.about["policy"] == "each"
    assert float(each.about["threshold"]) == each.threshold
    assert each.digest == both.digest
    assert both.with_policy("expected") is both
    assert Ensemble.load(both.path, policy="each", review=False).review == (each.threshold,) * 2


def test_an_older_ensemble_has_its_own_line_alone_and_says_so(tmp_path: Path):
    old = make_ensemble(tmp_path / "old")
    assert "operating_points" not in (tmp_path / "old/ensemble.json").read_text()
    assert old.policy == "each"
    assert Ensemble.load(old.path, policy="each").threshold == old.threshold
    with pytest.raises(EnsembleError, match=r"has no policy expected.*--policy each"):
        Ensemble.load(old.path, policy="expected")


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((n, 64, 64)).astype(np.float32), np.zeros((n, 1), np.float32)


def test_a_threshold_that_a_person_gives_decides_alone(tmp_path: Path):
    judge = make_ensemble(tmp_path / "e")
    said = judge.judge(*images(40))
    line = float(np.median(said.score))
    given = judge.with_policy(f"threshold={line}")
    verdicts = given.judge(*images(40))
    assert given.policy == f"threshold={line}"
    np.testing.assert_array_equal(verdicts.verdict == "keep", verdicts.score >= np.float32(line))
    assert "review" not in verdicts.verdict


@pytest.mark.parametrize(("share", "kept"), [(0.25, 10), (0.0, 0), (1.0, 40)])
def test_a_share_keeps_the_best_and_the_vote_agrees_with_its_line(tmp_path: Path, share, kept):
    judge = make_ensemble(tmp_path / "e").with_policy(f"share={share}")
    assert judge.awaits_share
    verdicts, after = decide_source(judge.judge(*images(40)), judge, 0.05)
    keep = verdicts.verdict == "keep"
    assert keep.sum() == kept
    assert not after.awaits_share
    assert verdicts.about == after.about
    d1, d2, d3 = verdicts.members()
    asked = disagree(d1, d2, after.threshold)
    np.testing.assert_array_equal(keep, np.where(asked, d3, d1) >= after.threshold)
    np.testing.assert_array_equal(keep, verdicts.score >= np.float32(after.threshold))


def test_a_source_has_few_under_review_and_no_forced_decision_changes(tmp_path: Path):
    judge = make_ensemble(tmp_path / "e").with_line(0.5, (0.1, 0.9))
    rng = np.random.default_rng(7)
    score = rng.random(100).astype(np.float32)
    columns = dict.fromkeys(("score", "d1", "d2", "d3"), score)
    columns["verdict"] = np.where(score < 0.1, "discard", np.where(score < 0.9, "review", "keep"))
    columns["reason"] = np.array([None, "ice"], object)[(score < 0.1).astype(int)]
    before = Verdicts.of(np.arange(100), columns, [(100, "gone")], judge.about)
    after, line = decide_source(before, judge, 0.05)
    assert before.counts()["review"] > 70
    assert after.counts()["review"] == 5
    assert after.counts()["quarantined"] == 1
    decided = after.verdict != "review"
    np.testing.assert_array_equal((after.verdict == "keep")[decided], (score >= 0.5)[decided])
    np.testing.assert_array_equal(after.score, score)
    assert after.about["review"] == f"{line.review[0]!r} {line.review[1]!r}"
    few, same = decide_source(before, judge.with_line(0.5, (0.495, 0.505)), 0.05)
    assert few.counts()["review"] <= 5
    assert same.review == (0.495, 0.505)


def test_the_card_says_what_each_project_lost_at_both_lines(drawn):
    text = "\n".join(lines_section(drawn, 0.95))
    assert f"| expected | {drawn['expected'].point.threshold:.4f} |" in text
    worst = max(drawn["expected"].lost, key=drawn["expected"].lost.get)
    expected, each = (drawn[policy].lost[worst] for policy in ("expected", "each"))
    assert f"| {worst} | {expected:.1%} | {each:.1%} |" in text
    assert "the 20 that lost most" in text
    one = "\n".join(lines_section(drawn, 0.95, ["project-07"]))
    assert "project-07" in one
    assert "project-08" not in one
    assert lines_section({}, 0.95) == []
