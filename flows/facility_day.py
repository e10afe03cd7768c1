"""A day at a facility: learn from past projects, then judge a new collection while it is recorded.

``python -m flows.facility_day --out demo`` is what ``make demo`` runs.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from cryoray import simulation, terminal
from cryoray.errors import InputError
from cryoray.formats.files import write_csv
from cryoray.formats.names import PREDICTIONS_TABLE, REPORT
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import find_sources, open_source
from cryoray.formats.subset import write_star
from cryoray.metrics import accuracy
from cryoray.models.registry import shipped
from cryoray.records import Event
from cryoray.session.folder import places
from cryoray.session.watcher import Watcher
from cryoray.settings import FitSettings, load
from cryoray.verbs.watch import service_of

from .classify import classify
from .command import command
from .day_report import (
    judged,
    manifest_of,
    passed_junk,
    threshold_of,
    truth,
    verdict_in_words,
    verdicts_of,
    write_report,
)
from .evaluate import evaluate, numbers
from .ingest import ingest
from .microscope import exposures, record
from .reporter import Reporter, key, link_report, run_of
from .session import Clock
from .train import train

#: Of the new collection.
SESSION = "day"


class Day(BaseModel):
    """How large a day is: what fits into ten minutes on two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    past: int = Field(8, ge=4, description="projects from which people selected")
    images: int = Field(400, ge=10, description="images in each, and in the new collection")
    epochs: int = Field(12, ge=1, description="of each network")
    hold_out: float = Field(
        0.25, gt=0, lt=1, description="share of past groups for evaluation alone"
    )
    seed: int = 1

    @property
    def training(self) -> dict[str, Any]:
        """Settings of the training, over the defaults."""
        return {
            "train": {
                "fit": {"epochs": self.epochs},
                "hold_out": str(self.hold_out),
                "seed": self.seed,
            }
        }


#: Given particles need no simulating, and there may be twenty minutes for them.
RECORDED = Day(epochs=20)


#: The steps of a day and what share of it each took on two cores; only the time left depends on them.
STEPS = {
    "past projects": 0.05,
    "prepared set": 0.02,
    "training": 0.77,
    "groups held out": 0.03,
    "new collection, judged live": 0.08,
    "the same, by the ensemble that ships": 0.03,
    "report": 0.02,
}


class Steps:
    """How far a day is, printed as each of its steps begins.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()

    def begin(self, name: str) -> None:
        """Print which step begins, and about how long this and the others will take."""
        terminal.out.print(self.line(name), style="bold")

    def line(self, name: str) -> str:
        """``3 of 6: training, about 4 minutes left``; no time before there is something to go by."""
        at = list(STEPS).index(name)
        done = sum(list(STEPS.values())[:at])
        line = f"{at + 1} of {len(STEPS)}: {name}"
        if not done:
            return line
        left = (self._clock() - self._began) * (1 - done) / done
        minutes = round(left / 60)
        if minutes < 1:
            return f"{line}, less than a minute left"
        return f"{line}, about {minutes} minute{'' if minutes == 1 else 's'} left"


@flow(name="facility-day", flow_run_name="facility day in {out}")
def facility_day(out: Path, source: Path | None = None, day: Day | None = None) -> dict[str, Any]:
    """Learn from past projects, judge a new collection stack by stack, and say how well it went.

    Args:
        out: folder of everything that is made.
        source: particles with a selection, of which some groups are kept aside to be the new
            collection; without, past projects and a new collection are simulated.
        day: how large it is.

    Returns:
        the numbers of the groups held out and of the new collection, and where the files are.
    """
    day, steps = day or Day(), Steps()
    steps.begin("past projects")
    past = source or simulate(out / "past", day.past, day.images, day.seed)
    steps.begin("prepared set")
    prepared = ingest([past], out / "set")
    steps.begin("training")
    ensemble = train([prepared], out / "ensemble", day.training)
    steps.begin("groups held out")
    held_out = evaluate(ensemble, prepared, out / "evaluation")
    steps.begin("new collection, judged live")
    if source is None:
        new = simulate(out / "new", 1, day.images, day.seed + 1)
    else:
        new = set_aside(source, out / "evaluation", out / "new")
    session, speed = collect(new, ensemble, out)
    live = compare("live", new, judged(open_source(new), session), manifest_of(ensemble).threshold)
    steps.begin("the same, by the ensemble that ships")
    by_shipped = classify(new, out / "shipped", ensemble=str(shipped("particle")))
    collection = open_source(new)
    table = verdicts_of(collection, by_shipped)
    ships = compare("shipped", new, table, threshold_of(table))
    steps.begin("report")
    command = f"make demo OUT={out}" + (f" SOURCE={source}" if source else "")
    page = write_report(
        out, new, session, ensemble, held_out, live, by_shipped, ships, speed, day.training, command
    )
    link_report("day", out)
    return {
        "held_out": held_out,
        "live": live,
        "shipped": ships,
        "why": verdict_in_words(ships, passed_junk(collection, table)),
        "images_per_second": speed,
        "ensemble": ensemble,
        "verdicts": session,
        "report": page,
    }


@task(cache_policy=NO_CACHE, task_run_name="simulate {out}")
def simulate(out: Path, projects: int, images: int, seed: int) -> Path:
    """Call ``cryoray.simulation.simulate``."""
    settings = load(simulate={"projects": projects, "images": images, "seed": seed})
    with Reporter("source", run_of(out)) as reporter:
        simulation.simulate(out, settings, on_progress=reporter.progress, on_event=reporter.event)
    return out


@task(cache_policy=NO_CACHE, task_run_name="leave out what {evaluation} judged")
def set_aside(source: Path, evaluation: Path, out: Path) -> Path:
    """Make a collection of the images that evaluation judged: the ensemble has not seen their groups."""
    judged = set(pq.read_table(evaluation / PREDICTIONS_TABLE)["image"].to_pylist())
    (found,) = find_sources(source)
    opened = open_source(found)
    rows = np.flatnonzero([image in judged for image in opened.images])
    stacks = [os.path.relpath(opened.stacks[index], out) for index in opened.stack[rows]]
    names = [
        f"{frame + 1:06d}@{stack}"
        for frame, stack in zip(opened.frame[rows].tolist(), stacks, strict=True)
    ]
    write_star(out / "particles.star", opened, rows, names)
    selection = find_selection(found)
    if selection is None:
        raise InputError("has no selection beside it", file=found, remedy="add a labels.csv")
    labels = read_selection(selection, opened)[rows].tolist()
    lines = zip(stacks, (opened.frame[rows] + 1).tolist(), labels, strict=True)
    kept = [line for line in lines if line[-1] >= 0]
    write_csv(out / "truth.csv", ("stack", "index", "keep"), kept)
    return out


@flow(name="collect", flow_run_name="collect {new}")
def collect(new: Path, ensemble: Path, out: Path) -> tuple[Path, float]:
    """Judge each stack as the microscope writes it, in a session; its folder, and images per second."""
    source, live = open_source(new), out / "live"
    live.mkdir()
    settings = load(
        serve={"ensembles": [str(ensemble)], "port": 0, "token": secrets.token_urlsafe(32)},
        watch={"out": out / "sessions", "settle": 0.0, "poll": 0.2},
    )
    where, stop = places(live, SESSION, settings.watch), threading.Event()
    clock = Clock(stop, longest=3600.0, idle=600.0)
    waiting = {str(live / f"{stem}.mrcs") for stem, _ in exposures(source)}
    with (
        Reporter("session", out.name) as reporter,
        service_of(settings, where) as client,
        ThreadPoolExecutor(1, "microscope") as microscope,
    ):

        def hear(happened: Event) -> None:
            reporter.event(happened)
            waiting.discard(str(happened.data.get("stack")))
            if not waiting:
                stop.set()

        watcher = Watcher(live, SESSION, settings.watch, client, on_event=clock.heard(hear))
        try:
            began = time.monotonic()
            recorded = microscope.submit(lambda: list(record(source, live)))
            recorded.add_done_callback(lambda done: stop.set() if done.exception() else None)
            clock.start()
            watcher.run(stop)
            seconds = time.monotonic() - began
            row_counts = watcher.row_counts()
        finally:
            stop.set()
            watcher.close()
        recorded.result()
    fates = {
        name: int(str(row_counts[name])) for name in ("kept", "discarded", "review", "quarantined")
    }
    line = terminal.balance(int(str(row_counts["rows"])), fates)
    terminal.out.print(f"new collection: {line}; {row_counts['rejected']} stacks rejected")
    return where.folder, len(source) / seconds


@task(cache_policy=NO_CACHE, task_run_name="compare {who} with the truth")
def compare(who: str, new: Path, table: pa.Table, threshold: float) -> dict[str, Any]:
    """The numbers of the new collection, kept as a table artifact too.

    Args:
        who: judged it, as the artifact is named.
        new: the collection.
        table: verdicts, with ``row`` of the collection.
        threshold: at which scores keep.
    """
    source = open_source(new)
    keep, _ = truth(source)
    rows = table["row"].to_numpy()
    rows, labelled = rows[keep[rows] >= 0], keep[rows] >= 0
    live = accuracy.metrics(
        keep[rows] == 1,
        table["score"].to_numpy()[labelled],
        threshold=threshold,
        review=np.array(table["verdict"].to_pylist())[labelled] == "review",
        groups=source.micrograph[rows],
    )
    create_table_artifact(
        numbers(live), key=key(f"metrics-{who}-{new.parent.name}"), description=str(new)
    )
    return live


def quiet() -> None:
    """Keep Prefect's log off this terminal, where bars and tables tell the same; its server has it."""
    loggers = (logging.getLogger(), *logging.Logger.manager.loggerDict.values())
    for handler in (one for logger in loggers for one in getattr(logger, "handlers", ())):
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def main(
    out: Annotated[Path, typer.Option(help="Folder of everything that is made.")] = Path("demo"),
    source: Annotated[
        Path | None, typer.Option(help="Particles with a selection; without, the day is simulated.")
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and Prefect's log.")
    ] = False,
) -> None:
    """Run a facility's day: learn from past projects, then judge a new collection as it is recorded."""
    with command(debug=debug):
        if not debug:
            quiet()
        out, began = out.absolute(), time.monotonic()
        day = RECORDED if source else Day()
        made = facility_day(emptied(out), source and source.absolute(), day)
        terminal.out.print(_summary(made))
        terminal.out.print(made["why"])
        terminal.out.print(
            f"{(time.monotonic() - began) / 60:.1f} minutes; each network trained {day.epochs} epochs,"
            f" where the default is {FitSettings().epochs}. See everything in {made['report']}"
        )


def emptied(out: Path) -> Path:
    """The folder without what an earlier day left there, which is all that may be in it.

    Raises:
        InputError: it holds something else.
    """
    mine = {
        *("past", "new", "set", "ensemble", "evaluation", "live", "sessions", "shipped"),
        *(REPORT, "figures"),
        "verdicts",  # of earlier releases
    }
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if foreign := sorted(there - mine):
        raise InputError(
            f"holds {foreign[0]}, which no demo made", file=out, remedy="give another OUT"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def _summary(made: dict[str, Any]) -> Table:
    """What a person came for, for the groups held out and for the new collection."""
    columns = {
        "held_out": "past, held out",
        "live": "new, judged live",
        "shipped": "new, by the ensemble that ships",
    }
    shown = Table("", *columns.values(), title="A facility's day", title_justify="left")
    for name, title in {
        "n": "images",
        "accuracy": "accuracy",
        "false_negative_rate": "good images lost",
        "false_positive_rate": "junk let through",
        "auroc": "AUROC",
        "review_fraction": "review",
    }.items():
        shown.add_row(title, *(terminal.text(made[which][name]) for which in columns))
    shown.add_row("images per second", "", f"{made['images_per_second']:,.0f}")
    for name in ("ensemble", "verdicts", "report"):
        shown.add_row(name, "", str(made[name]))
    return shown


if __name__ == "__main__":
    typer.run(main)
