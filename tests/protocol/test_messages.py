"""The bodies of the contract."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cryoray.protocol.messages import JudgeAnswer, JudgeRequest


def test_rows_are_first_and_end_of_at_least_one() -> None:
    assert JudgeRequest(source="a.star", rows=(0, 1)).rows == (0, 1)
    for rows in ([3, 3], [4, 3], [-1, 3], [0], [0, 1, 2], ["a", 1]):
        with pytest.raises(ValidationError):
            JudgeRequest.model_validate({"source": "a.star", "rows": rows})


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="row"):
        JudgeRequest.model_validate({"source": "a.star", "row": [0, 1]})


def test_the_answer_has_the_contracts_keys() -> None:
    verdict = {
        "row": 0, "image": "1@a.mrcs", "score": 0.5, "verdict": "review",
        "d1": 0.5, "d2": 0.5, "d3": None, "reason": None,
    }  # fmt: skip
    answer = {
        "ensemble": "abc", "verdicts": [verdict], "quarantined": [{"row": 1, "reason": "is dark"}],
    }  # fmt: skip
    assert JudgeAnswer.model_validate(answer).model_dump() == answer
