"""cryoray: which cryo-EM particles and classes to keep, learned from past selections, judged live.

Each arrow is one command and one public function::

    source ──ingest──► prepared set ──train──► ensemble ──classify──► verdicts ──validate──► report

In a notebook, in this process, with nothing written::

    particles = cryoray.open("particles.star")
    verdicts = cryoray.load_ensemble("particle").classify(particles[:2000])
    verdicts.to_pandas().query("score > .9")

What stands in ``__all__`` is public; the rest may change. Everything is imported when it is first used.
"""

import os as _os
from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from cryoray.version import __version__ as __version__

if _TYPE_CHECKING:
    from cryoray.errors import (
        CryorayError,
        EnsembleError,
        FormatError,
        InputError,
        InternalError,
        QuarantineError,
        SelectionError,
        SettingsError,
    )
    from cryoray.notebook import Ensemble, Particles, Verdicts, fsc, load_ensemble, open  # noqa: A004
    from cryoray.protocol.client import Client
    from cryoray.settings import Settings
    from cryoray.settings import load as load_settings
    from cryoray.simulation import simulate
    from cryoray.verbs.adapt import adapt
    from cryoray.verbs.classify import classify
    from cryoray.verbs.cross_validate import cross_validate
    from cryoray.verbs.evaluate import evaluate
    from cryoray.verbs.ingest import ingest
    from cryoray.verbs.train import train

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

#: Where each public name is defined, and by which name there.
_WHERE = {
    **dict.fromkeys(
        ("Ensemble", "Particles", "Verdicts", "fsc", "load_ensemble", "open"), "cryoray.notebook"
    ),
    **dict.fromkeys(
        (
            "CryorayError",
            "EnsembleError",
            "FormatError",
            "InputError",
            "InternalError",
            "QuarantineError",
            "SelectionError",
            "SettingsError",
        ),
        "cryoray.errors",
    ),
    "Client": "cryoray.protocol.client",
    "Settings": "cryoray.settings",
    "load_settings": "cryoray.settings:load",
    "simulate": "cryoray.simulation",
    **{
        verb: f"cryoray.verbs.{verb}"
        for verb in ("adapt", "classify", "cross_validate", "evaluate", "ingest", "train")
    },
}

__all__ = [
    "Client",
    "CryorayError",
    "Ensemble",
    "EnsembleError",
    "FormatError",
    "InputError",
    "InternalError",
    "Particles",
    "QuarantineError",
    "SelectionError",
    "Settings",
    "SettingsError",
    "Verdicts",
    "adapt",
    "classify",
    "cross_validate",
    "evaluate",
    "fsc",
    "ingest",
    "load_ensemble",
    "load_settings",
    "open",
    "simulate",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    found = getattr(_import_module(module), attribute or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
