"""By which profile a session's particles are judged: made of what has come, renewed at set sizes, then left.

A profile rests on 512 images, evenly spaced over the project. Of a session's first hundred images it knows
one micrograph, and neither the ice nor the defocus of the others. So it is made when the session has 64
images, and made anew when it has four times as many, up to 16,384: then it rests on some hundred
micrographs, and stands. Whenever there is a new one, what was judged before is judged again by it. With
steps of four that is at most 4/3 of the images that the session has then, and nothing once it stands.
Embeddings that were kept would save that, and would have to cross the service's protocol both ways, with
d3's and the reasons' of every image: dearer for all images than judging the first few again.

This module knows no network: a machine that only watches has no torch. To it a profile is what the service
answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoray.formats.files import replacing
from cryoray.formats.names import PROFILE
from cryoray.protocol.messages import MOST_SOURCES

#: Images that a session has when its profile is made, and made anew.
SIZES = (64, 256, 1024, 4096, 16_384)
#: Of the paths in a request: the service takes bodies of 64 KiB.
_BYTES = 48 << 10


@dataclass(frozen=True, slots=True, eq=False)
class SessionProfile:
    """A profile as the service made it.

    Attributes:
        body: `profile.json`.
        seen: images that the session had then.
    """

    body: Mapping[str, Any]
    seen: int

    @property
    def digest(self) -> str:
        """That names it."""
        return str(self.body["digest"])

    @property
    def ensemble(self) -> str:
        """Digest of the ensemble that looked."""
        return str(self.body["ensemble"])

    @property
    def images(self) -> int:
        """How many images it rests on."""
        return int(self.body["images"])

    def save(self, folder: Path) -> None:
        """Write `profile.json` there."""
        with replacing(folder / PROFILE) as temporary:
            temporary.touch(0o600)
            temporary.write_text(json.dumps(self.body) + "\n", encoding="utf-8")


def is_due(seen: int, before: int) -> bool:
    """Whether a session that has ``seen`` images wants another profile than that of ``before`` images."""
    return any(before < size <= seen for size in SIZES)


def stands(seen: int) -> bool:
    """Whether a profile of a session that had so many images is not made anew."""
    return seen >= SIZES[-1]


def spread(paths: Sequence[Path]) -> list[Path]:
    """The sources of a profile: all, or as many as a request takes, evenly spaced over them."""
    longest = max((len(str(path).encode(errors="surrogateescape")) for path in paths), default=1)
    most = max(1, min(MOST_SOURCES, _BYTES // (longest + 4)))
    if len(paths) <= most:
        return list(paths)
    chosen = np.linspace(0, len(paths) - 1, most).round().astype(int)
    return [paths[at] for at in chosen.tolist()]
