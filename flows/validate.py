"""Validation of what choices did, as a flow: to half-maps, to the map, to 2D class averages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from cryoray.settings import load
from cryoray.verbs.validate_fsc import validate_fsc
from cryoray.verbs.validate_reconstruct import validate_reconstruct
from cryoray.verbs.validate_similarity import validate_similarity

from .reporter import Reporter, key, link_report, run_of


@flow(name="validate-fsc", flow_run_name="FSC of {half1}")
def fsc(
    half1: Path,
    half2: Path,
    out: Path,
    mask: str | None = "auto",
    published: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """FSC of two half-maps, as ``cryoray validate fsc`` gives it.

    Args:
        half1: a half-map.
        half2: the other.
        mask: a map, ``auto``, or nothing.
        published: a curve to compare with: XML of the EMDB, STAR or CSV.
        out: folder of the numbers and the report.
        overrides: settings over those of file and environment, nested as in the TOML file.
    """
    return _validated(
        partial(validate_fsc, half1, half2, mask=mask, published=published), out, overrides
    )


@flow(name="validate-reconstruct", flow_run_name="maps of {source}")
def reconstruct(
    source: Path,
    verdicts: Path,
    out: Path,
    mask: str | None = "auto",
    truth: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Maps of the choices, as ``cryoray validate reconstruct`` makes them.

    Args:
        source: particles with poses.
        verdicts: folder of the verdicts on them.
        mask: a map, ``auto``, or nothing.
        truth: the true map, where it is known.
        out: folder of the numbers and the report.
        overrides: settings over those of file and environment, nested as in the TOML file.
    """
    return _validated(
        partial(validate_reconstruct, source, verdicts, mask=mask, truth=truth), out, overrides
    )


@flow(name="validate-similarity", flow_run_name="classes of {source}")
def similarity(
    source: Path,
    verdicts: Path,
    out: Path,
    selection: Path | None = None,
    volume: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Class averages compared, as ``cryoray validate similarity`` does it.

    Args:
        source: particles with classes.
        verdicts: folder of the verdicts on them.
        selection: what a person kept.
        volume: a map of which projections are compared.
        out: folder of the numbers and the report.
        overrides: settings over those of file and environment, nested as in the TOML file.
    """
    return _validated(
        partial(validate_similarity, source, verdicts, selection=selection, volume=volume),
        out,
        overrides,
    )


def _validated(
    verb: Callable[..., dict[str, Any]], out: Path, overrides: dict[str, Any] | None
) -> dict[str, Any]:
    numbers = validate(verb, out, overrides or {})
    tabulate(numbers, out)
    return numbers


@task(cache_policy=NO_CACHE, task_run_name="validate {out}")
def validate(
    verb: Callable[..., dict[str, Any]], out: Path, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Call one of the verbs of ``validate``."""
    with Reporter("validate", run_of(out)) as reporter:
        return verb(
            out=out,
            settings=load(**overrides),
            on_progress=reporter.progress,
            on_event=reporter.event,
        )


@task(cache_policy=NO_CACHE, task_run_name="tabulate {out}")
def tabulate(numbers: dict[str, Any], out: Path) -> None:
    """Keep resolutions and similarities as a table artifact."""
    create_table_artifact(rows(numbers), key=key(f"validate-{run_of(out)}"), description=str(out))
    link_report("validate", out)


def rows(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """The few numbers of a validation that a person looks for, one row each."""
    sets = numbers.get("sets", {"": numbers} if "resolution" in numbers else {})
    found = [
        {"what": f"{name} at {threshold}, Å".strip(), "value": limit["interpolated"]}
        for name, one in sets.items()
        for threshold, limit in one["resolution"].items()
    ]
    return found + [
        {"what": f"{measure}, {name}, median", "value": spread["median"]}
        for name in ("ours", "chance", "floor")
        for measure, spread in numbers.get(name, {}).items()
    ]
