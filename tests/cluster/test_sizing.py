"""The tables of `SIZING.md` are what its script makes of the rates that were measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

CLUSTER = Path(__file__).parents[2] / "cluster"
MADE = runpy.run_path(str(CLUSTER / "sizing.py"))


def test_the_page_is_what_the_rates_say() -> None:
    page = (CLUSTER / "SIZING.md").read_text()
    assert MADE["page"]() == page, "run python cluster/sizing.py"


def test_four_times_the_microscopes_read_four_times_as_much() -> None:
    rate = MADE["rates"]()
    one, four = (MADE["collection"](count, rate) for count in (1, 4))
    assert float(four[2]) / float(one[2]) > 3.5
    fast = MADE["collection"](4, {**rate, "service_images_per_core_s": 1e9})
    assert fast[3] == "1"
    assert fast[4:] == four[4:], "storage does not care for cores"


def test_every_rate_says_where_it_comes_from() -> None:

    for name, one in json.loads((CLUSTER / "rates.json").read_text()).items():
        assert one["value"] > 0, name
        assert len(one["from"]) > 5, name
