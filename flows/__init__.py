"""What Prefect schedules: the long verbs as flows, and a facility's day from end to end.

Without a server of its own (PREFECT_API_URL), a flow starts Prefect's ephemeral one, which may take
its time on a busy machine, and which tells nobody that it runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
