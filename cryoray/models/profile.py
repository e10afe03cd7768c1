"""Profiles: what one project looks like to an ensemble, measured on its images without labels.

A profile makes scores comparable between projects. It rests on up to `MOST` images, evenly spaced over the
project's rows, so that it does not depend on batches, workers or the engine. It is a file that names itself
by its digest; a score is a function of the image, the ensemble and the profile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cryoray.errors import InputError
from cryoray.formats.files import replacing
from cryoray.formats.names import PROFILE
from cryoray.formats.opening import way_out
from cryoray.models.context import QUANTILES, Moments, moments

#: Instead of a profile's file or digest: judge without one.
NO_PROFILE = "none"
#: Images that a profile rests on: means and deviations of so many are as good as those of all.
MOST = 512
#: Images that a profile may say it rests on.
_MANY = 10**9
#: Bytes of a profile's file, at most.
_LARGEST = 16 << 20


class MemberProfile(BaseModel):
    """What one member sees in a project's images: mean and deviation of each value, and its logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    quantiles: tuple[float, ...] = Field(min_length=len(QUANTILES), max_length=len(QUANTILES))


class Profile(BaseModel):
    """`profile.json`.

    Attributes:
        ensemble: digest of the ensemble whose members looked.
        images: how many images it rests on.
        members: what d1, d2 and d3 see.
        digest: over all of the above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    digest: str = ""
    ensemble: str
    images: int = Field(ge=0, le=_MANY)
    members: tuple[MemberProfile, MemberProfile, MemberProfile]

    def named(self) -> Profile:
        """The same with its digest."""
        return self.model_copy(update={"digest": self._named()})

    def _named(self) -> str:
        unnamed = self.model_copy(update={"digest": ""})
        return hashlib.sha256(unnamed.model_dump_json().encode()).hexdigest()

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values of an image each member's means are of."""
        return tuple(len(member.mean) for member in self.members)

    def moments(self) -> list[Moments]:
        """What each head is given, p = 1."""
        count = torch.tensor([float(self.images)])
        return [
            Moments(
                mean=torch.tensor([member.mean]),
                deviation=torch.tensor([member.deviation]),
                quantiles=torch.tensor([member.quantiles]),
                images=count,
            )
            for member in self.members
        ]

    def save(self, file: Path) -> None:
        """Write it."""
        with replacing(file) as temporary:
            temporary.write_text(self.model_dump_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Profile:
        """Read a profile; of a folder of verdicts, the one in it.

        Raises:
            InputError: the file is missing, damaged, or not what its digest names.
        """
        file = Path(file)
        file = file / PROFILE if file.is_dir() else file
        try:
            with file.open(encoding="utf-8") as opened:
                return cls.parse(opened.read(_LARGEST))
        except FileNotFoundError:
            raise InputError(
                "there is no such profile",
                file=file,
                remedy=f"{way_out(file)}; profile.json lies beside the verdicts of `cryoray classify`",
            ) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=file) from error
        except ValueError as error:
            raise InputError(
                f"is not a profile, or is damaged: {_wrong(error)}",
                file=file,
                remedy="classify the project again to make one",
            ) from error

    @classmethod
    def parse(cls, text: str | bytes) -> Profile:
        """A profile from JSON.

        Raises:
            ValueError: it is none, damaged, or not what its digest names.
        """
        profile = cls.model_validate_json(text)
        if profile.digest != profile._named():
            raise ValueError("its content is not what its digest names")
        sizes = {(len(m.mean), len(m.deviation)) for m in profile.members}
        if any(mean != deviation for mean, deviation in sizes):
            raise ValueError("as many means as deviations are needed")
        numbers = [x for m in profile.members for x in (*m.mean, *m.deviation, *m.quantiles)]
        with np.errstate(over="ignore"):
            if not np.isfinite(np.asarray(numbers).astype(np.float32)).all():
                raise ValueError("a number is not finite, or too large for float32")
        return profile


def _wrong(error: ValueError) -> str:
    """What is wrong with a profile, in words."""
    if not isinstance(error, ValidationError):
        return "it is no text" if isinstance(error, UnicodeDecodeError) else str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return "it is not whole JSON"
    if first["type"] == "missing":
        return f"it has no {where}"
    if first["type"] == "extra_forbidden":
        return f"it has {where}, which profiles do not have"
    return f"its {where} makes no sense" if where else "it is no table of names and values"


def sampled(rows: np.ndarray) -> np.ndarray:
    """Rows that a profile rests on, of int64 [n] ascending: all, or `MOST` of them evenly spaced."""
    if len(rows) <= MOST:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST).round().astype(np.int64)]


def profile_of(ensemble: str, seen: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Profile:
    """The profile of a project.

    Args:
        ensemble: digest of the ensemble that looked.
        seen: of d1, d2, d3: what they see in the sampled images [n, C], in order, and their logits [n].
    """
    d1, d2, d3 = (_rounded(moments(*of_member)) for of_member in seen)
    images = len(seen[0][1])
    return Profile(ensemble=ensemble, images=images, members=(d1, d2, d3)).named()


def _rounded(found: Moments) -> MemberProfile:
    mean, deviation, quantiles = (
        # Six digits: the same file wherever floats are printed, and far below what matters.
        tuple(float(f"{value:.6g}") for value in column[0].tolist())
        for column in found[:3]
    )
    return MemberProfile(mean=mean, deviation=deviation, quantiles=quantiles)
