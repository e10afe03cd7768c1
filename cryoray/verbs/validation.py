"""What the verbs of ``validate`` share: their folders, the verdicts that they read, numbers on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cryoray.errors import InputError
from cryoray.formats.files import replacing
from cryoray.formats.names import METRICS, PREDICTIONS_TABLE, REPORT, VERDICTS_TABLE
from cryoray.formats.opening import way_out
from cryoray.formats.source import Source
from cryoray.models.ensemble import MANIFEST


def is_validation(folder: Path) -> bool:
    """Whether a folder is one of ours, which may be replaced; verdicts have a page and numbers as well."""
    others = (VERDICTS_TABLE, PREDICTIONS_TABLE, MANIFEST)
    return all((folder / name).is_file() for name in (METRICS, REPORT)) and not any(
        (folder / name).exists() for name in others
    )


def verdicts_of(path: Path, source: Source) -> np.ndarray:
    """Str objects [n]: the verdict about each row of a source, '' where there is none.

    Raises:
        InputError: there are no verdicts, or none about these images.
    """
    file = verdicts_table(path)
    if not file.is_file():
        remedy = "give a folder of `classify`" if path.exists() else way_out(path)
        raise InputError("there are no verdicts", file=path, remedy=remedy)
    table = pq.read_table(file, columns=["image", "verdict"])
    known = dict(zip(table["image"].to_pylist(), table["verdict"].to_pylist(), strict=True))
    found = np.array([known.get(name, "") for name in source.images], object)
    if not (found != "").any():
        raise InputError(
            f"has no verdicts on the images of {source.path}",
            file=file,
            remedy="judge these particles, or give those that were judged",
        )
    return found


def verdicts_table(path: Path) -> Path:
    """The table in a folder of verdicts; a file is taken for the table itself."""
    return path / VERDICTS_TABLE if path.is_dir() else path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain numbers; what is not a number is null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
