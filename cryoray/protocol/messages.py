"""What the service hears and says: the bodies of ``POST /v1/judge``, and of everything that goes wrong."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cryoray.records import Verdict

JUDGE, HEALTH, METRICS = "/v1/judge", "/healthz", "/metrics"
ENSEMBLES = "/v1/ensembles"

#: The body of an upload: a whole `.mrcs` file.
STACK_TYPE = "application/octet-stream"


class Message(BaseModel):
    """A frozen body that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JudgeRequest(Message):
    """Rows of a source that lies on a disk which the service sees."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(
        description="path of a .star, .cs or .mrcs under one of the service's roots"
    )
    rows: tuple[int, int] | None = Field(
        None, description="[first, end], 0-based, end excluded; null: all"
    )
    ensemble: str | None = Field(None, description="name of one of the service's; null: its first")

    @model_validator(mode="after")
    def _some_rows(self) -> JudgeRequest:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise ValueError(f"rows {list(self.rows)} are none: 0 <= first < end")
        return self


class JudgedRow(Message):
    """One verdict; ``row`` is 0-based, in what was asked about (contracts: Verdicts)."""

    row: int
    image: str
    score: float
    verdict: Verdict
    d1: float
    d2: float
    d3: float | None = Field(None, description="null where d3 was not asked")
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


class Problem(Message):
    """The body of every answer that is not 200: one sentence."""

    error: str
