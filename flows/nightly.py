"""Every night: what people labelled in sessions trains a challenger, which is served if it is better."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.errors import SettingsError
from cryoray.formats.names import REPORT
from cryoray.metrics.comparison import Comparison
from cryoray.models import registry
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.prepared import PreparedSet
from cryoray.report.challenge import challenge_page
from cryoray.session import gathering
from cryoray.session.gathering import Gathered
from cryoray.session.ledger import Ledger
from cryoray.settings import Settings, load
from cryoray.verbs.challenge import challenge as compare

from .ingest import ingest
from .promote import promote
from .reporter import Reporter, key
from .train import train


@flow(name="nightly", flow_run_name="nightly {name}")
def nightly(
    name: str,
    ledgers: list[str],
    sets: list[Path],
    out: Path,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a challenger on what people labelled since, and promote it if it is better.

    Nothing is kept of when it ran last: what was gathered, each set and each challenger is named for
    what it was made of, so that what is there is not made again, and a night without new labels
    ends at once.

    Args:
        name: of the ensemble in the registry.
        ledgers: of sessions; SQLite files or URLs.
        sets: prepared sets that every challenger learns from, beside the sessions.
        out: folder of what is gathered, prepared and trained.
        overrides: settings over those of file and environment (``nightly``, ``train``, ``registry``).

    Returns:
        ``promoted`` and ``why``, the digests of both, and where the challenger and the page are.
    """
    chosen = overrides or {}
    settings, out = load(**chosen), Path(out).absolute()
    champion = registry.resolve(name, settings.registry)
    gathered = gather(ledgers, out / "gathered", champion, settings)
    taught = prepare(
        [one for one in gathered if one.use == "teach"], out / "sets", champion, chosen
    )
    audits = prepare(
        [one for one in gathered if one.use == "judge"], out / "sets", champion, chosen
    )
    if not taught:
        return stays(
            name, champion, "nobody labelled an image in a session that may be used for training"
        )
    challenger = trained([*map(Path, sets), *taught], out / "challengers", chosen)
    before = past(settings.registry, name, challenger)
    if before:
        return stays(name, champion, before, challenger)
    outcome = judge(champion, challenger, audits, chosen)
    page = tell(name, outcome, champion, challenger)
    if outcome.better:
        promote(challenger, name, chosen, reason=outcome.why)
    return {
        "promoted": outcome.better,
        "why": outcome.why,
        "champion": Ensemble.load(champion).digest,
        "challenger": challenger,
        "page": page,
    }


@task(cache_policy=NO_CACHE)
def gather(ledgers: Sequence[str], out: Path, champion: Path, settings: Settings) -> list[Gathered]:
    """Call ``cryoray.session.gathering.gather`` for each ledger, and keep a table of it."""
    found: list[Gathered] = []
    kind = Ensemble.load(champion).kind
    for url in ledgers:
        ledger = Ledger(url)
        try:
            found += gathering.gather(ledger, out, kind, settings.nightly.judge_share)
        finally:
            ledger.close()
    names = [one.session for one in found]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise SettingsError(
            f"two ledgers have a session {twice!r}",
            remedy="name sessions for their date and machine",
        )
    create_table_artifact(
        [
            {
                "session": one.session,
                "used to": one.use,
                "good": one.keep,
                "bad": one.images - one.keep,
                "lost": one.lost,
            }
            for one in found
        ],
        key=key(f"gathered-{out.parent.name}"),
        description="what people labelled in sessions",
    )
    return found


def prepare(
    gathered: Sequence[Gathered], out: Path, champion: Path, overrides: dict[str, Any]
) -> list[Path]:
    """A set of each session, prepared as the champion's images are; those that are there are kept."""
    look = Ensemble.load(champion)
    made = []
    for one in gathered:
        place = out / one.name
        if not place.is_dir():
            ingestion = {
                **overrides.get("ingest", {}),
                "kind": look.kind,
                "group": one.session,
                "selection": str(one.selection),
                "preparation": look.preparation.model_dump(mode="json") | {"features": None},
            }
            ingest(one.stars, place, {**overrides, "ingest": ingestion})
        made.append(place)
    return made


def trained(sets: Sequence[Path], out: Path, overrides: dict[str, Any]) -> Path:
    """The challenger of these sets, named for them and the settings of training."""
    fitted = load(**overrides).train.model_dump(mode="json", exclude={"workers", "gpu"})
    made_of = [sorted(PreparedSet.open(path).digest for path in sets), fitted]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    place = out / digest[:16]
    return place if place.is_dir() else train(list(sets), place, overrides)


def past(root: Path, name: str, challenger: Path) -> str:
    """Why this challenger need not be compared again, '' where it must."""
    digest = Ensemble.load(challenger).digest
    if registry.active(root, name) == digest:
        return "nothing was labelled since the ensemble that is served was trained"
    for line in reversed(registry.history(root, name)):
        if line.change == "rolled back" and line.instead_of == digest:
            return f"the challenger was served before, and rolled back on {line.time:%d %B %Y}"
    return ""


@task(cache_policy=NO_CACHE)
def judge(
    champion: Path, challenger: Path, audits: Sequence[Path], overrides: dict[str, Any]
) -> Comparison:
    """Call ``cryoray.verbs.challenge.challenge``."""
    with Reporter("ensemble") as reporter:
        return compare(champion, challenger, audits, load(**overrides), on_event=reporter.event)


@task(cache_policy=NO_CACHE)
def tell(name: str, outcome: Comparison, champion: Path, challenger: Path) -> Path:
    """Keep table, curves and reason as artifacts, and a page beside the challengers."""
    if outcome.champion is not None:
        create_table_artifact(
            outcome.table(), key=key(f"challenge-{name}"), description=outcome.why
        )
        create_table_artifact(
            [
                {"good images lost": bound, "champion": ours, "challenger": theirs}
                for bound, ours, theirs in outcome.curves
            ],
            key=key(f"challenge-curves-{name}"),
            description="of the junk, removed where so many of the good images are lost",
        )
    verdict = "promoted" if outcome.better else "not promoted"
    create_markdown_artifact(
        f"**{verdict}**: {outcome.why}.\n\nchampion `{champion}`\n\nchallenger `{challenger}`",
        key=key(f"nightly-{name}"),
    )
    served = Ensemble.load(champion).digest[:12]
    page = challenger.parent / f"{challenger.name}-against-{served}" / REPORT
    page.parent.mkdir(exist_ok=True)
    return challenge_page(page, outcome, champion, challenger)


def stays(name: str, champion: Path, why: str, challenger: Path | None = None) -> dict[str, Any]:
    """The champion stays, and why."""
    create_markdown_artifact(f"**not promoted**: {why}.", key=key(f"nightly-{name}"))
    return {
        "promoted": False,
        "why": why,
        "champion": Ensemble.load(champion).digest,
        "challenger": challenger,
        "page": None,
    }
