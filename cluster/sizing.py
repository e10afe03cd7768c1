"""The arithmetic of `SIZING.md`: ``python cluster/sizing.py`` renews its tables from `rates.json`.

Rates are measurements of this project's benchmarks: put your machines' into `rates.json`.
"""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "SIZING.md"
BEGIN, END = "<!-- sizing: begin -->\n", "<!-- sizing: end -->\n"

#: A busy microscope: particle images an hour, side in px, bytes of a pixel.
IMAGES_PER_HOUR, SIDE, PIXEL = 500_000, 256, 2
#: After an interruption, how much faster than they come images are to be judged.
CATCH_UP = 3.0
#: Of a core, how much work is given to it: the rest is for what comes unevenly.
USED = 0.7
EPOCHS, FOLDS, BOX = 60, 3, 64


def rates() -> dict[str, float]:
    """What was measured, by name."""
    return {
        name: one["value"] for name, one in json.loads((HERE / "rates.json").read_text()).items()
    }


def collection(microscopes: int, rate: dict[str, float]) -> tuple[str, ...]:
    """What judging some microscopes live takes: a row of the table."""
    images = microscopes * IMAGES_PER_HOUR / 3600
    steady = images / rate["service_images_per_core_s"]
    cores = ceil(CATCH_UP * steady / USED)
    read = images * SIDE**2 * PIXEL / 1e6
    day = microscopes * IMAGES_PER_HOUR * 24 * SIDE**2 * PIXEL / 1e12
    return (
        f"{microscopes}",
        f"{images:,.0f}",
        f"{steady:.1f}",
        f"{cores}",
        f"{read:,.0f} MB/s",
        f"{CATCH_UP * read:,.0f} MB/s",
        f"{day:.1f} TB",
    )


def training(particles: float, rate: dict[str, float]) -> tuple[str, ...]:
    """What preparing and learning from some particles takes: a row of the table."""
    gib = particles * SIDE**2 * 4 / 2**30
    ingest = gib * rate["ingest_cpu_s_per_gib"] * rate["ingest_wall_over_cpu"] / 3600
    # Cross-fitting: each fold's fit sees the others, and one more fit sees all.
    passes = FOLDS * (FOLDS - 1) / FOLDS + 1
    seconds = sum(
        particles * EPOCHS * passes / rate[f"train_{member}_images_per_core_s"]
        for member in ("d1", "d2", "d3")
    )
    stored = particles * BOX**2 * 2 / 1e9
    plan = particles / 1e6 * rate["plan_s_per_million_rows"]
    memory = particles / 1e6 * rate["plan_mib_per_million_rows"] / 1024
    return (
        f"{particles / 1e6:g} million",
        f"{gib / 1024:.2f} TiB",
        f"{plan:,.0f} s, {memory:.1f} GiB",
        f"{ingest:,.1f}",
        f"{stored:,.0f} GB",
        f"{seconds / 3600:,.0f}",
        f"{seconds / 3600 / 256:,.1f} h",
    )


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text() -> str:
    """The tables."""
    rate = rates()
    live = (
        "microscopes",
        "images/s",
        "cores busy",
        f"cores to have (×{CATCH_UP:g}, {USED:.0%} used)",
        "read",
        "read when catching up",
        "images a day",
    )
    learn = (
        "particles",
        "raw, float32",
        "plan, one process",
        "ingestion, core hours",
        "set, float16",
        f"training, core hours ({EPOCHS} epochs)",
        "training on 256 cores",
    )
    return (
        table(live, [collection(count, rate) for count in (1, 4, 16)])
        + "\n"
        + table(learn, [training(count, rate) for count in (1e5, 1e6, 1e7, 2e7)])
    )


def page() -> str:
    """`SIZING.md` with its tables made anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + text() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
