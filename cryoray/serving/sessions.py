"""What Prometheus learns of the sessions in the ledger: sums over the open ones, and none of their names.

The address of the metrics asks for no token, and a session's name may say what is worked on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cryoray.session.ledger import Ledger
from cryoray.session.schema import FATES, STATES


class OpenSessions(Collector):
    """Asks the ledger when it is asked.

    Args:
        ledger: of the sessions that are shown.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: at registration no ledger is asked."""
        yield from ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Sessions, stacks by state, images by fate, and for how long no watcher has been heard of."""
        open_ones = [row for row in self._ledger.sessions() if row.state == "open"]
        stacks: Counter[str] = Counter(dict.fromkeys(STATES, 0))
        images: Counter[str] = Counter(dict.fromkeys(FATES, 0))
        for session in open_ones:
            for key, counted in self._ledger.totals(session.name).items():
                stacks[key.rpartition("/")[2]] += counted["stacks"]
                for fate in FATES:
                    images[fate] += counted[fate]
        yield _gauge("cryoray_sessions_open", "Sessions that are watched", float(len(open_ones)))
        silent = max((time.time() - row.seen for row in open_ones), default=0.0)
        yield _gauge(
            "cryoray_session_silent_seconds",
            "For how long the watcher of an open session has not been heard of, the longest",
            silent,
        )
        for name, what, label, counts in (
            ("cryoray_session_stacks", "Stacks of open sessions, by state", "state", stacks),
            ("cryoray_session_images", "Images of open sessions, by fate", "fate", images),
        ):
            family = GaugeMetricFamily(name, what, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)
