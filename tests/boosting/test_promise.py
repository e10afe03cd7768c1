"""What is said of a line is what was measured at it, and nothing where nothing was."""

from __future__ import annotations

import json

import pytest

from cryoray.boosting.promise import aim, in_words
from cryoray.models.registry import SHIPPED

EACH = {"policy": "each", "bound": 0.03, "level": "project", "groups": 251}


def test_what_projects_lost_is_said_and_not_what_was_hoped() -> None:
    lost = {"a": 0.0, "b": 0.03, "c": 0.05, "d": 0.6}
    assert in_words(EACH, lost) == (
        "drawn so that few projects lose more than 3% of their good images (from 251 projects); measured on 4"
        " held-out projects: 17.0% lost on average, 60% in the worst, at most 3% in 50% of them"
    )
    assert in_words(EACH | {"policy": "expected"}).startswith(
        "drawn so that projects lose at most 3% of their good images on average (from 251 projects); what"
    )


def test_a_line_that_rests_on_images_says_so() -> None:
    said = in_words(EACH | {"level": "image", "groups": 8156}, {"a": 0.02})
    assert "(from 8,156 images, whatever their project: too few projects" in said
    assert "1 held-out project:" in said


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"policy": "threshold=0.4", "threshold": 0.4}, "given by a person"),
        ({"policy": "best of the job"}, "drawn by the policy best of the job"),
        ({"policy": "each"}, "drawn so that few projects lose many"),
        ({"level": "none", "bound": 0.03, "groups": 7}, "too few images"),
    ],
)
def test_nothing_is_said_to_be_measured_where_nothing_was(
    point: dict[str, object], words: str
) -> None:
    said = in_words(point)
    assert words in said
    assert "measured on" not in said


def test_without_an_ensemble_there_is_no_number() -> None:
    for policy in ("expected", "each"):
        assert not any(letter.isdigit() for letter in aim(policy))


@pytest.mark.parametrize("kind", ["particle", "class2d"])
def test_what_ships_says_how_many_projects_stay_within_the_bound(kind: str) -> None:
    manifest = json.loads((SHIPPED / kind / "ensemble.json").read_text())
    for line in manifest["operating_points"].values():
        bound, shares = line["operating_point"]["bound"], line["lost"].values()
        within = sum(share <= bound for share in shares) / len(shares)
        assert f"at most 3% in {within:.0%} of them" in in_words(
            line["operating_point"], line["lost"]
        )
