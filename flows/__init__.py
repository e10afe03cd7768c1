"""What Prefect schedules: the long verbs as flows, and a facility's day from end to end.

Without a server of its own (PREFECT_API_URL), a flow starts Prefect's ephemeral one, which may take
its time on a busy machine, which tells nobody that it runs, and which answers this flow alone.
"""

from __future__ import annotations

import os
import secrets

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

if not (os.environ.get("PREFECT_API_URL") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING")):
    # The ephemeral server listens on 127.0.0.1, where it would answer anybody on this machine. It and its
    # client read these, and so do the processes that a flow starts.
    _word = f"cryoray:{secrets.token_urlsafe(32)}"
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = _word
    os.environ.setdefault("PREFECT_API_AUTH_STRING", _word)
