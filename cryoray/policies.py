"""How the line between keep and discard is drawn, as people say it: the one grammar of such words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cryoray.errors import SettingsError

#: The policies that an ensemble knows from its training.
Policy = Literal["expected", "each"]
TRAINED: tuple[Policy, ...] = get_args(Policy)
#: Those for which a person gives a number from 0 to 1.
GIVEN = ("threshold", "share")


@dataclass(frozen=True, slots=True)
class Words:
    """A policy taken apart.

    Attributes:
        name: of `TRAINED` or `GIVEN`.
        number: that a person gave, 0 to 1; None of a trained policy.
    """

    name: str
    number: float | None = None


def parsed(policy: str) -> Words:
    """The words of a policy: ``expected``, ``each``, ``threshold=X`` or ``share=X`` with X from 0 to 1.

    Raises:
        SettingsError: they are no policy's.
    """
    name, equals, text = policy.partition("=")
    if name in TRAINED and not equals:
        return Words(name)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if name in GIVEN and 0 <= number <= 1:
        return Words(name, number)
    raise SettingsError(
        f"there is no policy {policy!r}",
        remedy="give expected, each, a threshold from 0 to 1 (threshold=0.7) or the share of images to keep"
        " (share=0.3)",
    )


def checked(policy: str) -> str:
    """The policy as it is.

    Raises:
        SettingsError: it is none.
    """
    parsed(policy)
    return policy
