"""`card.md`: what an ensemble is, what it was trained on and what it promises, for a person."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cryoray.boosting.operating_point import Line
from cryoray.models.ensemble import Manifest
from cryoray.models.networks import Network, parameters
from cryoray.models.rounds import Boosted
from cryoray.policies import Policy
from cryoray.records import MEMBERS
from cryoray.settings import TrainSettings

#: Projects that are listed one by one.
_LISTED = 20


def card(
    manifest: Manifest,
    boosted: Boosted,
    settings: TrainSettings,
    sets: Sequence[tuple[str, str]],
) -> str:
    """The card as Markdown.

    Args:
        manifest: of the ensemble.
        boosted: what three rounds gave.
        settings: of the training.
        sets: name and digest of each prepared set.
    """
    point, bound = boosted.point, boosted.bound
    confidence = settings.operating_point.confidence
    groups = len(manifest.training_groups)
    lines = [
        f"# An ensemble of kind {manifest.kind}",
        "",
        f"Trained on {len(boosted.probabilities):,} labelled images in {groups} "
        f"{manifest.split_by}{'' if groups == 1 else 's'}, {manifest.prevalence:.0%} of them keep.",
        "",
        f"**What it promises.** {point.guarantee(confidence)}",
        "",
        f"Keep where score ≥ {point.threshold:.4f}; review where {manifest.review[0]:.4f} ≤ score < "
        f"{manifest.review[1]:.4f}. On the calibration images {point.achieved:.2%} of the good ones fall "
        f"below the threshold ({point.method}).",
        "",
        *lines_section(boosted.lines, confidence),
        "| member | network | parameters | error on its own distribution |",
        "|---|---|---|---|",
        *(_member(n, name, bound[name]) for n, name in zip(boosted.networks, MEMBERS, strict=True)),
        "",
        f"The worst of these bounds the vote at 3e² - 2e³ = {bound['limit']:.2%}; measured on held-out "
        f"predictions it errs on {bound['vote']:.2%}.",
        _few_wrong(bound),
        "",
        f"{int(boosted.suspects.sum()):,} labels look wrong; `training.json` lists them.",
        "",
        "| set | digest |",
        "|---|---|",
        *(f"| {name} | `{digest[:16]}` |" for name, digest in sets),
        "",
        f"Metadata: {', '.join(manifest.features) or 'none'}. Epochs: {settings.fit.epochs}. "
        f"Folds: {settings.folds}. Seed: {settings.seed}.",
        "",
    ]
    return "\n".join(lines)


def lines_section(
    lines: Mapping[Policy, Line], confidence: float, projects: Collection[str] | None = None
) -> list[str]:
    """Where each policy draws the line, and what projects lost there, as lines of Markdown.

    Args:
        lines: of the ensemble; none where it was made before there were several.
        confidence: of policy `each`.
        projects: those that are listed one by one, real ones for instance; None: all where they are few,
            else those that lost most.
    """
    if not lines:
        return []
    lost = [line.lost for line in lines.values()]
    if projects is None:
        worst = sorted(lost[0], key=lambda name: -max(of[name] for of in lost))
        listed = sorted(worst[:_LISTED])
        which = "" if len(worst) <= _LISTED else f", the {_LISTED} that lost most"
    else:
        listed, which = [name for name in lost[0] if name in projects], ""
    columns = " | ".join(f"lost, {policy}" for policy in lines)
    made = [
        "## Two ways of drawing the line",
        "",
        "`classify --policy expected` or `each`:",
        "",
        "| policy | threshold | review | good lost: mean over projects, worst, share of projects within | "
        "junk kept | promise |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for policy, line in lines.items():
        shares = np.array(list(line.lost.values()) or [0.0])
        within = float(np.mean(shares <= line.point.bound))
        made.append(
            f"| {policy} | {line.point.threshold:.4f} | {line.review[0]:.4f} to {line.review[1]:.4f} "
            f"| {shares.mean():.2%}, {shares.max():.1%}, {within:.0%} | {line.junk_kept:.1%} "
            f"| {line.point.guarantee(confidence)} |"
        )
    return [
        *made,
        "",
        f"Good images that each project lost{which}, by networks that had not seen it:",
        "",
        f"| project | {columns} |",
        "|---|" + "--:|" * len(lines),
        *(f"| {name} | " + " | ".join(f"{of[name]:.1%}" for of in lost) + " |" for name in listed),
        "",
    ]


def _member(network: Network, name: str, error: float) -> str:
    look = network.config
    blocks = "+".join(map(str, look.blocks))
    return (
        f"| {name} | {blocks} blocks, width {look.width}, {look.activation} "
        f"| {parameters(network):,} | {error:.2%} |"
    )


def _few_wrong(bound: dict[str, float]) -> str:
    wrong, enough = int(bound["d1_wrong"]), int(bound["enough_wrong"])
    if wrong >= enough:
        return ""
    return f"d1 errs on {wrong:,} images only; with fewer than {enough} boosting has little to work with."
