"""Sections about a training: how the members learned, and the bound of boosting beside the vote's error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cryoray.records import MEMBERS
from cryoray.report import plots
from cryoray.report.blocks import Block, Figure, Section, Table, percent


def curves_section(training: Mapping[str, Any]) -> Section:
    """Loss and held-out accuracy over epochs for the three members, from training.json."""
    rows: Sequence[Mapping[str, Any]] = training["curves"]
    drawn = (
        ("loss", "training loss", "Loss on the images each member trains on (its filtered set)"),
        ("val_loss", "held-out loss", "Loss on the fold that was held out"),
        ("val_accuracy", "held-out accuracy", "Accuracy on the fold that was held out"),
    )
    blocks: list[Block] = []
    for quantity, label, caption in drawn:
        values = [row[quantity] for row in rows if row.get(quantity) is not None]
        if values:
            svg = plots.curves(rows, quantity, label, f"curve-{quantity}")
            alt = f"{label} of d1, d2 and d3 over epochs, {values[0]:.3f} to {values[-1]:.3f}"
            blocks.append(Figure(svg, alt, f"{caption}: the mean over its fits, each fit faint."))
    table = []
    for member in MEMBERS:
        mine = [row for row in rows if row["member"] == member]
        if mine:
            fits = len({row.get("fold") for row in mine})
            epochs = max(int(row["epoch"]) for row in mine) - min(int(row["epoch"]) for row in mine)
            speed = [row["images_per_second"] for row in mine if row.get("images_per_second")]
            pace = f"{np.median(speed):,.0f}" if speed else "–"
            table.append((member, str(fits), str(epochs + 1), pace))
    if table:
        heads = ("member", "fits", "epochs", "images/s")
        caption = "Fits: one for each cross-fitting fold and the final one."
        blocks.append(Table(heads, tuple(table), caption, narrow=True))
    lead = (
        "d1 learns from the images as they come, d2 from a mixture of which d1 gets half wrong, d3 from"
        " those on which d1 and d2 disagree. So their losses are over different images."
    )
    return Section("Training", blocks, lead)


def bound_section(bound: Mapping[str, float | None]) -> Section:
    """Each member's error on its own distribution, the bound of boosting, and the vote's real error.

    Args:
        bound: of training.json: `d1`, `d2`, `d3`, `worst`, `limit`, `vote`, and how often d1 was wrong
            (`d1_wrong`) where it should have been (`enough_wrong`).
    """
    where = ("the training distribution", "what d1 gets half wrong", "where d1 and d2 disagree")
    rows = [
        (member, percent(bound.get(member)), place)
        for member, place in zip(MEMBERS, where, strict=True)
    ]
    rows.append(
        (
            "bound 3e²\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}2e³",
            percent(bound.get("limit")),
            "with e the worst of the three",
        )
    )
    rows.append(("vote, measured", percent(bound.get("vote")), "the training distribution"))
    sentences = [
        "If each member errs at most e on the distribution it was trained for, the vote of three errs"
        " at most 3e²\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}2e³ on the original one (Schapire 1990)."
    ]
    worst, vote, limit = (bound.get(name) for name in ("worst", "vote", "limit"))
    if worst is not None and worst >= 0.5:
        sentences.append("Here a member errs half the time on its own, so nothing is promised.")
    elif vote is not None and limit is not None:
        sentences.append(
            "The vote is within the bound."
            if vote <= limit
            else "The vote is worse than the bound, which holds for exact filtering and true errors:"
            " here filtered sets are padded where there are too few images, and errors are measured."
        )
    wrong, enough = bound.get("d1_wrong"), bound.get("enough_wrong")
    if wrong is not None and enough is not None and wrong < enough:
        sentences.append(
            f"d1 was wrong about {wrong:,.0f} images only, fewer than {enough:,.0f}: boosting had little"
            " to work with, and d2 and d3 add little to d1."
        )
    caption = "All errors are on images that the member was not trained on."
    heads = ("", "error", "measured on")
    table = Table(heads, tuple(rows), caption, text=(2,))
    return Section("Members and vote", [table], " ".join(sentences))
