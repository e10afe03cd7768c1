"""Where a long verb runs: in this process on a local Ray or a cluster's, or as a job of a Ray cluster.

``runtime.address`` chooses: none, a Ray's address (``head:6379``, ``ray://head:10001``), or the URL of a
Ray dashboard (``http://head:8265``), to which the verb is submitted. A job's id is derived from what it is
to do, so that a flow which is run again finds the job that it started, or the work done. What the verb
says there comes back as lines of the job's log.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cryoray.errors import CryorayError, InputError, SettingsError
from cryoray.records import Event, OnEvent, OnProgress, Progress
from cryoray.settings import Settings, load

#: A verb's function; its arguments are paths, lists of paths, or what JSON has.
VERBS = {
    "ingest": "cryoray.verbs.ingest:ingest",
    "train": "cryoray.verbs.train:train",
    "classify": "cryoray.verbs.classify:classify",
    "evaluate": "cryoray.verbs.evaluate:measure",
    "cross-validate": "cryoray.verbs.cross_validate:cross_validate",
}
_SAYS = "cryoray says "
#: Seconds between two looks at a job.
_EVERY = 2.0


def run(
    verb: str,
    arguments: Mapping[str, Any],
    out: Path,
    overrides: dict[str, Any],
    on_progress: OnProgress,
    on_event: OnEvent,
) -> Any:
    """Do what a verb does, here or there.

    Args:
        verb: of `VERBS`.
        arguments: of its function, by name.
        out: what it makes; a job that has made it is not run again.
        overrides: settings over those of file and environment. A job has the cluster's environment,
            not this one's.
        on_progress: called with how far it is.
        on_event: called with what happened.

    Returns:
        what the function returns; None where it ran as a job.

    Raises:
        InputError: the job failed; its last line says why.
        SettingsError: the cluster takes no jobs.
    """
    settings = load(**overrides)
    address = settings.runtime.address or ""
    if not address.startswith(("http://", "https://")):
        return _call(verb, arguments, settings, on_progress, on_event)
    try:
        _follow(address, verb, _request(verb, arguments, overrides), out, on_progress, on_event)
    except (
        RuntimeError,
        ConnectionError,
    ) as error:  # what Ray's client makes of an answer, or of none
        raise SettingsError(
            f"the Ray at {address} takes no jobs: {str(error).strip().rstrip('.')}",
            remedy="see whether its dashboard answers, and whether RAY_AUTH_TOKEN is its token",
        ) from error
    return None


def job_id(verb: str, request: str) -> str:
    """The same for the same work."""
    return f"cryoray-{verb}-{hashlib.sha256(request.encode()).hexdigest()[:16]}"


def _request(verb: str, arguments: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """What is to be done, as a job reads it; where it runs is no part of that."""
    given = {name: value for name, value in overrides.items() if name != "runtime"}
    body = {"verb": verb, "arguments": dict(arguments), "overrides": given}
    return json.dumps(body, sort_keys=True, default=lambda path: str(Path(path).absolute()))


def _call(
    verb: str,
    arguments: Mapping[str, Any],
    settings: Settings,
    on_progress: OnProgress,
    on_event: OnEvent,
) -> Any:
    module, _, name = VERBS[verb].partition(":")
    function = getattr(import_module(module), name)
    return function(**arguments, settings=settings, on_progress=on_progress, on_event=on_event)


def _follow(
    address: str, verb: str, request: str, out: Path, on_progress: OnProgress, on_event: OnEvent
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    client, name = JobSubmissionClient(address), job_id(verb, request)
    known = {job.submission_id: job.status for job in client.list_jobs()}
    status = known.get(name)
    if (
        status is not None
        and status.is_terminal()
        and not (status == JobStatus.SUCCEEDED and Path(out).exists())
    ):
        client.delete_job(name)
        status = None
    if status is None:
        # A cluster has the flows where the clone is, or as the wheel installs them.
        module = __name__ if __name__ == "flows.engine" else "cryoray_flows.engine"
        client.submit_job(
            entrypoint=f"python -m {module} {shlex.quote(request)}", submission_id=name
        )
    heard = 0
    while True:
        status = client.get_job_status(name)
        log = client.get_job_logs(name)
        whole = log[: log.rfind("\n") + 1]
        hear(whole[heard:], on_progress, on_event)
        heard = len(whole)
        if status.is_terminal():
            break
        time.sleep(_EVERY)
    if status != JobStatus.SUCCEEDED:
        last = next(
            (line for line in reversed(log.splitlines()) if line.strip()), "it printed nothing"
        )
        raise InputError(
            f"the Ray job {name} {status.value.lower()}: {last.strip().rstrip('.')}",
            remedy=f"see `ray job logs {name} --address {address}`",
        )


def hear(text: str, on_progress: OnProgress, on_event: OnEvent) -> None:
    """Pass on what a verb said in some lines of its job's log."""
    for line in text.splitlines():
        if not line.startswith(_SAYS):
            continue
        reported = json.loads(line.removeprefix(_SAYS))
        if "event" in reported:
            on_event(Event(reported["event"], reported["data"]))
        else:
            on_progress(Progress(**reported))


class Speaker:
    """Callbacks that say everything as lines of a log; of progress, what is new every two seconds."""

    def __init__(self) -> None:
        self._reported: dict[str, float] = {}

    def progress(self, now: Progress) -> None:
        """Say how far a stage is."""
        last = self._reported.get(now.stage, -_EVERY)
        if time.monotonic() - last >= _EVERY or now.done == now.total:
            self._reported[now.stage] = time.monotonic()
            self._say({name: getattr(now, name) for name in now.__dataclass_fields__})

    def event(self, happened: Event) -> None:
        """Say what happened."""
        self._say({"event": happened.name, "data": dict(happened.data)})

    @staticmethod
    def _say(what: Mapping[str, Any]) -> None:
        print(_SAYS + json.dumps(what, default=str), flush=True)


def main(request: str) -> None:
    """In the job: do what was asked for on the Ray that the job belongs to."""
    asked = json.loads(request)
    speaker = Speaker()
    try:
        settings = load(**asked["overrides"])
        here = {"address": os.environ.get("RAY_ADDRESS", "auto")}
        _call(
            asked["verb"],
            {name: _path(value) for name, value in asked["arguments"].items()},
            settings.model_copy(update={"runtime": settings.runtime.model_copy(update=here)}),
            speaker.progress,
            speaker.event,
        )
    except CryorayError as error:
        print(error, flush=True)
        raise SystemExit(error.exit_code) from None


def _path(value: Any) -> Any:
    """Every text among the arguments of a verb is a path."""
    if isinstance(value, list):
        return [_path(one) for one in value]
    return Path(value) if isinstance(value, str) else value


if __name__ == "__main__":
    main(sys.argv[1])
