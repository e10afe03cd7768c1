"""Several ingresses are one service: they count together, and go on while their supervisor is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cryoray.models.ensemble import Ensemble
from cryoray.protocol.messages import Agreement, ShadowReport
from cryoray.serving.counts import Counts, merged
from cryoray.serving.lineup import Followed, Served
from cryoray.serving.shadow import together
from cryoray.serving.supervisor import Standing


@pytest.fixture
def served(tiny_ensemble: Path) -> Served:
    return Served.of("tiny", Ensemble.load(tiny_ensemble), tiny_ensemble)


def samples(text: str, name: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(name)]


def test_what_each_has_counted_is_summed_and_rates_are_not() -> None:
    one, other = Counts(16), Counts(16)
    for counts, requests, kept in ((one, 3, 0.2), (other, 4, 0.6)):
        counts.requests.labels("200").inc(requests)
        counts.stages.labels("plan").observe(0.03)
        counts._kept.labels("tiny").set(kept)
    one.others = [other.collected()]
    text = one.text().decode()
    assert samples(text, "cryoray_requests_total") == ['cryoray_requests_total{status="200"} 7.0']
    assert samples(text, "cryoray_keep_rate") == ['cryoray_keep_rate{ensemble="tiny"} 0.4']
    buckets = samples(text, "cryoray_stage_seconds_bucket")
    assert [line.rpartition(" ")[2] for line in buckets] == ["0.0"] * 3 + ["2.0"] * (
        len(buckets) - 3
    )
    assert not [line for line in text.splitlines() if "_created" in line]
    assert text.count("# TYPE cryoray_requests_total counter") == 1
    assert merged([]) == []


def test_comparisons_are_weighed_by_their_images() -> None:
    verdicts = {
        one: dict.fromkeys(("keep", "discard", "review"), 1)
        for one in ("keep", "discard", "review")
    }
    agreement = Agreement(
        ensemble="tiny", active="a", shadow="b", images=9, agreement=1.0, score_difference=0.0,
        verdicts=verdicts,
    )  # fmt: skip
    worse = agreement.model_copy(update={"images": 27, "agreement": 0.6, "score_difference": 0.4})
    other = agreement.model_copy(update={"active": "c"})
    reports = [
        ShadowReport(shadow="s", agreements=[agreement], skipped=1, failed=0),
        ShadowReport(shadow="s", agreements=[worse, other], skipped=2, failed=3, last_failure="x"),
    ]
    whole = together(reports)
    assert [(one.active, one.images) for one in whole.agreements] == [("a", 36), ("c", 9)]
    assert whole.agreements[0].agreement == pytest.approx(0.7)
    assert whole.agreements[0].score_difference == pytest.approx(0.3)
    assert whole.agreements[0].verdicts["keep"]["review"] == 2
    assert (whole.skipped, whole.failed, whole.last_failure) == (3, 3, "x")


class Away:
    """A supervisor that cannot be reached."""

    def __getattr__(self, name: str) -> Any:
        class Method:
            async def remote(self, *given: object) -> object:
                raise ConnectionError("the supervisor is away")

        return Method()


def test_while_the_supervisor_is_away_what_it_said_last_holds(served: Served) -> None:
    new = replace(served, digest="f" * 64)
    lineup = Followed({"tiny": served}, Away())
    standing = Standing({"tiny": new}, {"tiny": (served, 60.0)}, (), 2, 1, ())
    lineup.update(standing)
    assert lineup["tiny"] is new
    assert lineup.before(new) is served
    assert asyncio.run(lineup.failed(new, RuntimeError("the judges died"))) is served
    lineup.update(Standing({"tiny": new}, {}, (), 2, 1, ()))
    assert asyncio.run(lineup.failed(new, RuntimeError("the judges died"))) is None
    assert asyncio.run(lineup.failed(served, RuntimeError("of a request that is older"))) is new
