"""Select: verdicts on a local page, on which a person makes the selection that the next program takes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryoray.boosting import adaptation, prevalence, promise
from cryoray.boosting.adaptation import Change
from cryoray.errors import EnsembleError, InputError, SettingsError
from cryoray.formats.names import PROFILE
from cryoray.models.adaptation import adapted
from cryoray.models.ensemble import MANIFEST, Ensemble, Manifest
from cryoray.models.profile import Profile
from cryoray.models.registry import SHIPPED, resolve
from cryoray.records import Event, OnEvent, ignore
from cryoray.select import saving
from cryoray.select.app import Page
from cryoray.select.clicks import Clicks
from cryoray.select.gallery import Gallery
from cryoray.select.selection import Judge, Selection
from cryoray.select.table import Table, open_table
from cryoray.settings import PreparationSettings, Settings

_HOST = "127.0.0.1"
SELECTED = "selected"


@dataclass(frozen=True)
class Opened:
    """A page that is ready to be served.

    Attributes:
        page: of the selection.
        listening: where it will answer.
        url: the link with its token.
    """

    page: Page
    listening: socket.socket
    url: str

    def serve(self) -> None:
        """Answer until the process is interrupted; pictures are small, and drawn in one thread each."""
        torch.set_num_threads(1)
        self.page.serve(self.listening)


@contextmanager
def select(
    verdicts: Path,
    settings: Settings,
    *,
    source: Path | None = None,
    ensemble: str | Path | None = None,
    out: Path | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[Opened]:
    """Open verdicts for a person to make a selection of, while the block lasts.

    Args:
        verdicts: a folder that ``classify`` made. What is decided is kept there, in ``selection.jsonl``.
        settings: ``select`` and ``registry`` are used.
        source: where the verdicts do not name it, or it has moved.
        ensemble: that judged; None: the one of the registry, or that ships, whose digest they name.
        out: folder that *save* writes; None: ``selected`` in the folder of the verdicts.
        on_event: ``select.opened``.

    Raises:
        InputError: there are no verdicts, their source is gone, or another process has them open; or
            ``out`` holds a selection on other verdicts.
        EnsembleError: the ensemble that was given is not the one that judged.
        SettingsError: the port is taken.
    """
    folder = Path(verdicts).absolute()
    table = open_table(folder, None if source is None else Path(source).absolute())
    target = folder / SELECTED if out is None else Path(out).absolute()
    saving.check(target, folder, replace=settings.select.replace)
    found = _with_profile(table, _ensemble_of(table, settings.registry, ensemble))
    preparation = PreparationSettings() if found is None else found.preparation
    try:
        clicks = Clicks(folder, len(table), table.digest)
    except PermissionError as error:
        raise InputError(
            "cannot be written, and what is decided is kept there",
            file=folder,
            remedy="copy the folder to one of your own, or have it opened to you",
        ) from error
    try:
        selection = Selection(table, clicks, None if found is None else _judge(found, settings))
        gallery = Gallery(table, preparation)
        # Found out while the browser starts: columns now, the contrast of the images beside it.
        table.packed(table.verdicts.score)
        threading.Thread(target=lambda: gallery.dark, daemon=True).start()
        page = Page(selection, gallery, target, low_pass=settings.select.low_pass)
        with _listening(settings.select.port) as listening:
            url = f"http://{_HOST}:{listening.getsockname()[1]}/?token={page.token}"
            on_event(
                Event(
                    "select.opened",
                    {
                        "url": url,
                        "images": len(table),
                        "kind": table.kind,
                        "turned": int((clicks.state.turned >= 0).sum()),
                        "ensemble": None if found is None else str(found.path),
                    },
                )
            )
            yield Opened(page, listening, url)
    finally:
        clicks.close()


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        raise SettingsError(
            f"port {port} cannot be used: {os.strerror(error.errno or 0)}",
            remedy="give another --port, or none for a free one",
        ) from error


def _ensemble_of(table: Table, registry: Path, given: str | Path | None) -> Ensemble | None:
    """The ensemble that judged, None where it is not at hand."""
    digest = table.verdicts.ensemble
    if given is not None:
        ensemble = Ensemble.load(resolve(given, registry, table.kind))
        if digest and ensemble.digest != digest:
            raise EnsembleError(
                f"is not the ensemble that judged, whose digest is {digest[:12]}…",
                file=ensemble.path,
                remedy="give that one, or none",
            )
        return ensemble
    if not digest:
        return None
    for folder in (SHIPPED / table.kind, *registry.glob(f"*/{digest}")):
        try:
            if (folder / MANIFEST).is_file():
                ensemble = Ensemble.load(folder)
                if ensemble.digest == digest:
                    return ensemble
        except EnsembleError:  # damaged, or of another cryoray: the page does without
            continue
    return None


def _with_profile(table: Table, ensemble: Ensemble | None) -> Ensemble | None:
    """The ensemble within the project, where it judged by the profile beside the verdicts."""
    file = table.folder / PROFILE
    if ensemble is None or "profile" not in table.verdicts.about or not file.is_file():
        return ensemble
    return ensemble.with_profile(Profile.load(file))


def _judge(ensemble: Ensemble, settings: Settings) -> Judge:
    manifest: Manifest = ensemble.manifest

    def adapt(plain: np.ndarray, known: np.ndarray, labels: np.ndarray) -> tuple[Change, float]:
        share = prevalence.estimate(plain, manifest.prevalence)
        change = adaptation.fit_change(plain[known], labels, share.shift)
        chosen = settings.train.operating_point
        after = adapted(manifest, change, plain, known, labels, share.estimate, chosen)
        return change, after.threshold

    lines: dict[str, tuple[float, str]] = {
        name: (line.threshold, promise.in_words(line.operating_point, line.lost))
        for name, line in manifest.operating_points.items()
    }
    return Judge(f"{manifest.kind} {ensemble.digest[:12]}", lines, adapt)
