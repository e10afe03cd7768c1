"""cryoray: which cryo-EM particles and classes to keep, learned from past selections, judged live.

The way of the data, each arrow one verb and one public function::

    source ──ingest──► prepared set ──train──► ensemble ──classify──► verdicts ──validate──► proof

    cryoray.ingest.ingest    cryoray.training.train    cryoray.inference.classify, evaluate
    cryoray.serving.serve    cryoray.simulation.simulate
"""

import os as _os

# Ray reads these while it is imported, by whichever module comes first: nothing is sent home; a driver
# under `uv run` does not make every worker build the environment anew; a task that will be tried
# again, as Serve's are when it is shut down, is not printed as a failure; that workers of a training have
# ended, well or not, is noticed after half a second and not after two; and the dashboard lists trainings,
# which it does not by default.
_os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
_os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
_os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "There are infinite retries remaining")
_os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
_os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")

__version__ = "0.1.0"
