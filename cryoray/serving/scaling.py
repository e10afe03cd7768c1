"""How many replicas: by the images that wait, which say more than requests of one row or a million."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

_METRIC = "queued_images"
#: Seconds after which a report of the ingress is out of date.
_STALE_SECONDS = 15.0


class ByQueuedImages:
    """A policy for ``autoscaling_config.policy``: replicas for the images that wait.

    Args:
        images_per_replica: waiting images that one more replica is started for.
    """

    def __init__(self, images_per_replica: float = 4096) -> None:
        if images_per_replica <= 0:
            raise ValueError("images_per_replica must be more than 0")
        self.images_per_replica = images_per_replica

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number wanted; Ray Serve applies bounds and delays of the configuration."""
        reported = (ctx.aggregated_metrics or {}).get(_METRIC, {})
        # Every replica has the same number, of the whole queue; a new one perhaps none yet.
        queued = max(reported.values(), default=0.0)
        return max(1, math.ceil(queued / self.images_per_replica)), {}


class Queue:
    """The part of a replica that passes on what the ingress says of its queue."""

    def __init__(self) -> None:
        self._queued, self._heard_at = 0, -math.inf

    def heard(self, queued: int) -> None:
        """Keep how many images wait at the ingress for this deployment."""
        self._queued, self._heard_at = queued, time.monotonic()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve collects from each replica of a deployment that scales."""
        fresh = time.monotonic() - self._heard_at < _STALE_SECONDS
        return {_METRIC: float(self._queued if fresh else 0)}
