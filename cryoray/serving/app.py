"""The service on Ray Serve: built from settings, started, stopped."""
# No `from __future__ import annotations` here: Serve validates build's argument by its annotation.

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from pydantic import Field
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from cryoray.engine import runtime
from cryoray.errors import CryorayError, SettingsError
from cryoray.protocol.client import Client
from cryoray.protocol.token import check_strength, find_token
from cryoray.records import Event, OnEvent, ignore
from cryoray.serving.ensembles import find_ensembles, find_shadow
from cryoray.serving.ingress import Ingress
from cryoray.serving.preparer import Preparer
from cryoray.serving.proxy import CALLBACK, VARIABLE
from cryoray.serving.replica import Judge, Shadow
from cryoray.serving.supervisor import Supervisor
from cryoray.settings import AbsolutePath, ServeSettings, Settings

NAME = "cryoray"

#: After Ray Serve reports that all replicas run; only its proxy has still to learn where they are.
_START_SECONDS = 60.0

#: Preparers, and judges without a GPU: one per core has them all busy; more than a few take memory.
_PER_MACHINE = min(8, len(os.sched_getaffinity(0)))

#: So that one may be lost and the other answers.
_INGRESSES = min(2, _PER_MACHINE)

#: A replica that is lost or hangs is noticed and replaced within seconds; one that is idle ends at once.
_WATCHED = {
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 10.0,
    "graceful_shutdown_wait_loop_s": 0.2,
}

#: Requests that Ray Serve hands to an ingress: far more than it lets in, so that it is the one that says
#: so, and health and metrics are answered whatever else has come.
_HANDED_OVER = 10_000

#: For how long requests that are being answered are waited for at the end.
_DRAIN_SECONDS = 60.0


class Arguments(ServeSettings):
    """What `build` takes, from `start` or from a Serve config file."""

    registry: AbsolutePath = Field(default=Settings.model_fields["registry"].default)


def build(args: Arguments) -> ray_serve.Application:
    """The application: ingresses, their supervisor, preparers, and judges for each ensemble.

    Raises:
        SettingsError: no ensemble is named, or two have the same name.
        EnsembleError: an ensemble cannot be loaded.
    """
    ensembles = find_ensembles(args.ensembles, args.registry)
    shadow = find_shadow(args.shadow, args.registry, ensembles)
    settings = ServeSettings(
        **args.model_dump(exclude={"registry", "ensembles", "roots", "token"}),
        ensembles=tuple(ensembles),
        roots=args.roots or (Path.cwd(),),
        token=find_token(args.token, create=True),
    )
    # Small shares of a CPU: they are for counting, and four logical ones must host everything.
    preparers = ray_serve.deployment(
        name="preparer",
        num_replicas=settings.preparers or _PER_MACHINE,
        ray_actor_options={"num_cpus": 0.25},
        max_ongoing_requests=settings.max_queued,
        **_WATCHED,
    )(Preparer).bind()
    judges = {
        name: ray_serve.deployment(
            name=f"judge-{name}",
            num_replicas=_judges(settings),
            ray_actor_options={"num_cpus": 0.25, "num_gpus": _gpus(settings)},
            max_ongoing_requests=settings.batch,
            **_WATCHED,
        )(Judge).bind(served, settings.batch, settings.batch_wait)
        for name, served in ensembles.items()
    }
    beside = None
    if shadow is not None:
        alone = ray_serve.deployment(name="shadow", ray_actor_options={"num_cpus": 0})(Shadow)
        beside = (shadow, alone.bind(shadow))
    supervisor = ray_serve.deployment(
        name="supervisor", ray_actor_options={"num_cpus": 0.1}, **_WATCHED
    )(Supervisor).bind(settings, ensembles, args.registry, preparers, judges, beside)
    each = settings.model_copy(update={"max_queued": -(-settings.max_queued // _INGRESSES)})
    return ray_serve.deployment(
        name="ingress",
        num_replicas=_INGRESSES,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=_HANDED_OVER,
        **_WATCHED,
    )(ray_serve.ingress()(Ingress)).bind(
        each, ensembles, args.registry, supervisor, preparers, judges, beside
    )


def deployments(args: Arguments) -> tuple[str, ...]:
    """Names of the deployments that `build` makes, for who configures them."""
    judges = (f"judge-{Path(given).name}" for given in args.ensembles)
    return (
        "ingress",
        "supervisor",
        "preparer",
        *judges,
        *(("shadow",) if args.shadow is not None else ()),
    )


def _judges(settings: ServeSettings) -> int:
    """Judges of each ensemble: a GPU feeds on one, and a core is one on its own."""
    gpus = 0.0 if settings.gpus == 0 else ray.cluster_resources().get("GPU", 0.0)
    return settings.judges or int(gpus) or _PER_MACHINE


def _gpus(settings: ServeSettings) -> float:
    """GPUs of each judge; a share is a quarter of one or more, or they would crowd its memory."""
    if settings.gpus is not None:
        return settings.gpus
    there = ray.cluster_resources().get("GPU", 0.0)
    share = there / (_judges(settings) * len(settings.ensembles))
    return min(1.0, share) if share >= 0.25 else 0.0


@dataclass(frozen=True)
class Running:
    """A service that was started.

    Attributes:
        url: where it answers.
        token: that it wants.
        ensembles: digests by name.
    """

    url: str
    token: str
    ensembles: Mapping[str, str]

    def client(self) -> Client:
        """A client of this service."""
        return Client(self.url, self.token)

    def drain(self, hurry: threading.Event | None = None) -> None:
        """Have it take no more requests, and wait for those that are being answered, for a while.

        Args:
            hurry: do not wait any longer once this is set.
        """
        hurry, until = hurry or threading.Event(), time.monotonic() + _DRAIN_SECONDS
        with suppress(RayError, RayServeException):  # what is lost answers nobody
            ingress = ray_serve.get_app_handle(NAME)
            while any(ingress.broadcast("drain").results(timeout_s=10.0)):
                if time.monotonic() > until or hurry.wait(0.2):
                    break

    def stop(self) -> None:
        """Stop it, and Ray Serve where nothing else runs on it."""
        ray_serve.delete(NAME)
        if not ray_serve.status().applications:
            ray_serve.shutdown()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def start(
    settings: Settings, build: Callable[[Arguments], ray_serve.Application] = build
) -> Running:
    """Start the service and return when it answers.

    Args:
        settings: ``runtime``, ``registry`` and ``serve`` are used.
        build: makes the application.

    Raises:
        SettingsError: no ensemble is named, the port is taken, or Ray cannot be had.
        EnsembleError: an ensemble cannot be loaded.
    """
    args = Arguments(**settings.serve.model_dump(), registry=settings.registry)
    token = check_strength(find_token(args.token, create=True))
    ensembles = find_ensembles(args.ensembles, args.registry)
    port = _free_port(args.host, args.port)
    # A Ray that is started now passes these on. It makes workers nice by 15: what else computes on the
    # machine then has nearly all of it, and a microscope waits for its verdicts.
    os.environ.setdefault(VARIABLE, CALLBACK)
    os.environ.setdefault("RAY_worker_niceness", "0")
    runtime.connect(settings.runtime)
    logging.getLogger("ray.serve").setLevel(
        logging.ERROR
    )  # of this process; replicas write to files
    quiet = LoggingConfig(enable_access_log=False)
    ray_serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=args.host, port=port),
        logging_config=quiet,
    )
    application = build(args.model_copy(update={"token": token}))
    ray_serve.run(application, name=NAME, logging_config=quiet)
    running = Running(
        url=f"http://{args.host}:{port}",
        token=token,
        ensembles={name: served.digest for name, served in ensembles.items()},
    )
    _wait_until_healthy(running)
    return running


def serve(settings: Settings, *, on_event: OnEvent = ignore) -> None:
    """Serve until interrupted or terminated.

    Raises:
        SettingsError: no ensemble is named, the port is taken, or Ray cannot be had.
        EnsembleError: an ensemble cannot be loaded.
    """
    done, hurry = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        (hurry if done.is_set() else done).set()

    with start(settings) as running:
        on_event(
            Event("service.started", {"url": running.url, "ensembles": dict(running.ensembles)})
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        with running.client() as client:
            shown = 0
            while not done.wait(settings.serve.poll):
                with suppress(CryorayError):  # it restarts by itself, or is being stopped
                    for event in client.ensembles().events:
                        if event.number > shown:
                            on_event(Event(event.name, event.data))
                            shown = event.number
        on_event(Event("service.stopping"))
        running.drain(hurry)
    on_event(Event("service.stopped"))


def _wait_until_healthy(running: Running) -> None:
    until = time.monotonic() + _START_SECONDS
    with running.client() as client:
        while not client.healthy():
            if time.monotonic() > until:
                running.stop()
                raise SettingsError(
                    f"the service does not answer at {running.url}",
                    remedy="if Ray Serve runs on this Ray already, its host and port stay as they are",
                )
            time.sleep(0.1)


def _free_port(host: str, port: int) -> int:
    """The port if it is free, any free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
                remedy="give another --port, or stop what runs there",
            ) from error
        return int(probe.getsockname()[1])
