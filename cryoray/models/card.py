"""`card.md`: what an ensemble is, what it was trained on and what it promises, for a person."""

from __future__ import annotations

from collections.abc import Sequence

from cryoray.models.ensemble import Manifest
from cryoray.models.networks import Network, parameters
from cryoray.models.rounds import Boosted
from cryoray.records import MEMBERS
from cryoray.settings import TrainSettings


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
    groups = len(manifest.training_groups)
    lines = [
        f"# An ensemble of kind {manifest.kind}",
        "",
        f"Trained on {len(boosted.probabilities):,} labelled images in {groups} "
        f"{manifest.split_by}{'' if groups == 1 else 's'}, {manifest.prevalence:.0%} of them keep.",
        "",
        f"**What it promises.** {point.guarantee(settings.operating_point.confidence)}",
        "",
        f"Keep where score ≥ {point.threshold:.4f}; review where {manifest.review[0]:.4f} ≤ score < "
        f"{manifest.review[1]:.4f}. On the calibration images {point.achieved:.2%} of the good ones fall "
        f"below the threshold ({point.method}).",
        "",
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
