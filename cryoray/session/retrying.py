"""Seconds until what failed is tried again: at the service, at the ledger, at the webhook."""

from __future__ import annotations

#: Doubled from the first to the last.
FIRST_WAIT, LAST_WAIT = 1.0, 60.0


def longer(wait: float) -> float:
    """The wait after this one."""
    return min(LAST_WAIT, 2 * wait)
