"""The deployment that judges: the three members of one ensemble together, over several requests at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ray import serve

from cryoray.models.ensemble import Ensemble, Judgement
from cryoray.records import PreparedRows


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What became of a row range.

    Attributes:
        rows: int64 [n], source rows, in the order of the judgement.
        judgement: of n images.
        quarantined: (row, reason) of the others.
    """

    rows: np.ndarray
    judgement: Judgement
    quarantined: tuple[tuple[int, str], ...]


def judge_together(ensemble: Ensemble, parts: Sequence[PreparedRows]) -> list[Judged]:
    """Judge the images of several ranges in one go."""
    judged = ensemble.judge(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.features for part in parts]),
    )
    ends = np.cumsum([len(part.rows) for part in parts])
    return [
        Judged(
            rows=part.rows,
            judgement=Judgement(
                *(
                    column[end - len(part.rows) : end]
                    for column in (judged.score, judged.verdict, judged.d1, judged.d2, judged.d3)
                )
            ),
            quarantined=part.quarantined,
        )
        for part, end in zip(parts, ends.tolist(), strict=True)
    ]


class Judge:
    """One ensemble on one device.

    Args:
        path: the ensemble's folder.
        batch: images judged together; no range may have more.
        wait: seconds that a batch waits to be filled.
    """

    def __init__(self, path: Path, batch: int, wait: float) -> None:
        self.ensemble = Ensemble.load(path).to("cuda" if torch.cuda.is_available() else "cpu")
        self._together.set_max_batch_size(batch)
        self._together.set_batch_wait_timeout_s(wait)

    async def __call__(self, prepared: PreparedRows) -> Judged:
        """Judge a range, together with what other requests bring meanwhile."""
        return await self._together(prepared)

    @serve.batch(
        max_batch_size=512,
        batch_wait_timeout_s=0.02,
        batch_size_fn=lambda parts: sum(len(part.rows) for part in parts),
    )
    async def _together(self, parts: list[PreparedRows]) -> list[Judged]:
        # In a thread, so that the replica keeps answering, and the next batch gathers meanwhile.
        return await asyncio.to_thread(judge_together, self.ensemble, parts)

    async def ready(self) -> str:
        """The digest of the ensemble that it holds."""
        return self.ensemble.digest
