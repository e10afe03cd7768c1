"""The messages of the service: the bodies of ``POST /v1/judge``, its answers and its errors."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cryoray.records import Kind, Verdict

JUDGE, HEALTH, METRICS = "/v1/judge", "/healthz", "/metrics"
ENSEMBLES, SHADOW, PROFILES = "/v1/ensembles", "/v1/shadow", "/v1/profiles"

#: Sources of one profile: it rests on 512 images, and a body of JSON is small.
MOST_SOURCES = 128

#: The body of an upload: a whole `.mrcs` file.
STACK_TYPE = "application/octet-stream"


class Message(BaseModel):
    """A frozen body that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


#: Strict: true is no row.
_First = Annotated[int, Field(strict=True, ge=0)]
_End = Annotated[int, Field(strict=True, ge=1)]
_Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class JudgeRequest(Message):
    """Rows of a source that lies on a disk which the service sees."""

    source: _Path = Field(
        description="path of a .star, .cs or .mrcs under one of the service's roots"
    )
    rows: tuple[_First, _End] | None = Field(
        None, description="[first, end], 0-based, end excluded; null: all"
    )
    ensemble: str | None = Field(None, description="name of one of the service's; null: its first")
    profile: dict[str, Any] | None = Field(
        None, description="of the project, as POST /v1/profiles gives it; null: judge without one"
    )

    @model_validator(mode="after")
    def _some_rows(self) -> JudgeRequest:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise ValueError(f"rows {list(self.rows)} are not a range: 0 <= first < end")
        return self


class ProfileRequest(Message):
    """The project whose profile is wanted; the answer is a `profile.json`."""

    source: _Path | None = Field(
        None,
        description="path of a .star, .cs or .mrcs under one of the service's roots, all of the project",
    )
    sources: tuple[_Path, ...] = Field(
        (),
        description="instead of source: the paths that make up the project, in order, at most"
        f" {MOST_SOURCES}; those that cannot be read are left out",
    )
    ensemble: str | None = Field(None, description="name of one of the service's; null: its first")

    @model_validator(mode="after")
    def _either(self) -> ProfileRequest:
        if (self.source is None) == (not self.sources):
            raise ValueError("either source or sources is needed")
        if len(self.sources) > MOST_SOURCES:
            raise ValueError(f"{len(self.sources)} sources are more than {MOST_SOURCES}")
        return self

    @property
    def every(self) -> tuple[str, ...]:
        """The paths, in order."""
        return self.sources if self.source is None else (self.source,)


class JudgedRow(Message):
    """One verdict; ``row`` is 0-based, in what was asked about (docs/reference/file-formats.md: Verdicts)."""

    row: int
    image: str
    score: float
    verdict: Verdict
    d1: float
    d2: float
    d3: float | None = Field(None, description="null where d1 and d2 agreed")
    reason: str | None = Field(None, description="null unless discarded for a reason")


class QuarantinedRow(Message):
    """A row that could not be judged, and why."""

    row: int
    reason: str


class JudgeAnswer(Message):
    """Every row asked about, in order, in one of the two lists."""

    ensemble: str = Field(description="digest of the ensemble that judged")
    verdicts: list[JudgedRow]
    quarantined: list[QuarantinedRow]


class Training(Message):
    """What an ensemble was trained on, for telling when a session drifts away from it."""

    prevalence: float = Field(description="fraction to keep")
    features: dict[str, tuple[float, float]] = Field(
        description="mean and deviation of each, in the units that the networks see"
    )


class ServedEnsemble(Message):
    """An ensemble that judges now."""

    name: str
    digest: str
    kind: Kind
    training: Training
    context: bool = Field(False, description="whether it judges within projects by their profiles")
    before: str | None = Field(
        None, description="digest that takes its place if it fails; null when it has proved itself"
    )


class ServiceEvent(Message):
    """Something that happened to an ensemble: promoted, rolled back, refused."""

    number: int = Field(description="counts from 1 since the service started")
    time: datetime
    name: str
    data: dict[str, str]


class Ensembles(Message):
    """What is served, the default first, and the latest of what happened to it, oldest first."""

    ensembles: list[ServedEnsemble]
    events: list[ServiceEvent]


class Agreement(Message):
    """A shadow's verdicts on the images that an active ensemble judged, counted."""

    ensemble: str = Field(description="name of the active one")
    active: str = Field(description="its digest")
    shadow: str = Field(description="digest of the shadow")
    images: int = Field(description="judged by both")
    agreement: float | None = Field(description="fraction with the same forced decision")
    score_difference: float | None = Field(description="mean of the absolute difference")
    verdicts: dict[Verdict, dict[Verdict, int]] = Field(
        description="images by the active one's verdict and the shadow's"
    )


class ShadowReport(Message):
    """How a shadow ensemble compares with the active ones."""

    shadow: str | None = Field(description="its name; null: there is none")
    agreements: list[Agreement]
    skipped: int = Field(description="images that it had no time for")
    failed: int = Field(description="images that it failed to judge")
    last_failure: str | None = None


class Problem(Message):
    """The body of every answer that is not 200: one sentence."""

    error: str
