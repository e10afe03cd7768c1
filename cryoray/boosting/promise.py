"""What stands behind a policy's line, in words: what it is drawn for, what it rests on, what was measured.

The pages, the reports and the help all take their words from here. Numbers are those that the ensemble
itself carries: where none is at hand, none is given.
"""

from __future__ import annotations

from collections.abc import Mapping


def aim(policy: str, bound: float | None = None) -> str:
    """What a policy draws its line for, as the end of "drawn so that …".

    Args:
        policy: ``expected`` or ``each``.
        bound: share of good images lost that must not be exceeded; None where no ensemble is at hand.
    """
    if policy == "expected":
        few = "few" if bound is None else f"at most {bound:.0%}"
        return f"projects lose {few} of their good images on average"
    many = "many" if bound is None else f"more than {bound:.0%}"
    return f"few projects lose {many} of their good images"


def in_words(point: Mapping[str, object], lost: Mapping[str, float] | None = None) -> str:
    """What stands behind a line, in one sentence without its full stop.

    Args:
        point: an `operating_point` of ensemble.json; a line that a person gave says so.
        lost: share of its good images that each project lost at this line, by networks that had not
            seen it.
    """
    bound, policy = point.get("bound"), str(point.get("policy", "each"))
    if policy not in ("expected", "each"):
        drawn = "given by a person" if "=" in policy else f"drawn by the policy {policy}"
        return f"{drawn}; {_measured({}, 0)}"
    if not isinstance(bound, int | float):
        return f"drawn so that {aim(policy)}"
    return f"drawn so that {aim(policy, bound)}{_rests(point)}; {_measured(lost or {}, bound)}"


def _rests(point: Mapping[str, object]) -> str:
    groups, level = point.get("groups"), point.get("level")
    if level == "none":
        return " (too few images to rest that on)"
    if not isinstance(groups, int) or level not in ("project", "micrograph", "image"):
        return ""
    what = f"{groups:,} {level}{'' if groups == 1 else 's'}"
    if level == "project":
        return f" (from {what})"
    return f" (from {what}, whatever their project: too few projects have images enough)"


def _measured(lost: Mapping[str, float], bound: float) -> str:
    if not lost:
        return "what projects lose at it was not measured"
    shares = list(lost.values())
    mean, within = (sum(some) / len(shares) for some in (shares, [one <= bound for one in shares]))
    projects = f"{len(shares):,} held-out project{'' if len(shares) == 1 else 's'}"
    return (
        f"measured on {projects}: {mean:.1%} lost on average, {max(shares):.0%} in the worst, "
        f"at most {bound:.0%} in {within:.0%} of them"
    )
