"""One thing that was looked at, and what to do where it is not good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; a remedy where it is not good."""

    name: str
    found: str
    state: Literal["good", "warning", "bad"] = "good"
    remedy: str = ""
