"""The parts of the site that are made from the code, each time that it is built.

A page holds a marker, ``<!-- made: NAME -->``; while the site is built it is replaced by what the function
of that name in `MADE` returns, so that no page can fall behind the code. mkdocs loads this module as a hook
(``mkdocs.yml``); ``python -m docs.generate NAME`` prints one part.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/RESULTS.md"

_MARKER = re.compile(r"^<!-- made: ([\w-]+) -->$", flags=re.MULTILINE)
#: Headings inside an included text are one level deeper than the page's own.
_HEADING = re.compile(r"^(#+ )", flags=re.MULTILINE)

#: One sentence for each event. A test holds the names against the code's.
EVENTS: Mapping[str, str] = {
    "adapt.done": "The adapted ensemble is written; how its labels were used.",
    "challenge.decided": "Challenger and champion were compared on images that people labelled blind.",
    "classes.judged": "The 2D classes of a job in a session were judged.",
    "classify.done": "A source was judged: rows, verdicts, estimated share of good images.",
    "classify.planned": "What a source holds, before it is judged.",
    "classify.profiled": "The source's profile is made: on how many images it rests, and whether it is"
    " familiar, that is near enough to those of the training.",
    "classify.quarantined": "Rows of a source that could not be judged, counted by reason.",
    "companion.unused": "A STAR file beside a stack does not describe it, and why.",
    "companion.used": "The STAR file that describes a bare stack.",
    "context.learned": "The networks have learned to judge by a profile; how much better they are with it.",
    "dashboard.started": "Ray's dashboard of a local Ray: its address and the file with its token.",
    "drift.alarm": "Micrographs differ from the session's past, or from the ensemble's training: which"
    " quantity, and by how much.",
    "ensemble.promoted": "The service follows a name in the registry to another ensemble.",
    "evaluation.finished": "The numbers of `metrics.json`.",
    "evaluation.started": "How many images are judged, and how many are left out because the ensemble has"
    " seen their group.",
    "fetch.done": "All files of a public entry are there.",
    "fetch.listed": "What a public entry has: files, and bytes to download.",
    "fold.finished": "The numbers of one fold of a cross-validation.",
    "folder.away": "The watched folder cannot be read; the watcher waits.",
    "folder.back": "The watched folder can be read again.",
    "folder.unreadable": "A folder below the watched one cannot be read, and why.",
    "grid_square.judged": "The counts of a grid square, after each of its micrographs.",
    "ingest.done": "The prepared set is written: rows, labels, digest.",
    "ingest.planned": "What `ingest --plan` shows of a source.",
    "ingest.quarantined": "Rows that could not be read, counted by reason.",
    "ingest.resumed": "An interrupted ingestion goes on: tasks in all, and tasks done before.",
    "ledger.away": "The session's ledger cannot be reached; the watcher waits.",
    "ledger.back": "The ledger can be reached again.",
    "merge.failed": "The merged STAR files could not be written; they are tried again.",
    "micrograph.judged": "One micrograph: kept, discarded, review, keep rate, mean score, CTF resolution,"
    " defocus.",
    "page.ready": "The address of the session page, and the file with the session's token.",
    "profile.applied": "All particles of a session rest on its profile; the row counts of the session.",
    "profile.failed": "No profile could be made of a session, and why; its verdicts stay as they are.",
    "profile.made": "A session has a new profile: images that it rests on, images that the session had,"
    " stacks that are judged again.",
    "project.simulated": "A simulated collection is written.",
    "rank.done": "The 2D classes of a job were ranked: classes and particles, selected and in all.",
    "reasons.learned": "The network that names reasons is trained; how often it is right.",
    "relion.missing": "`relion_refine` is not installed, so no classes of RELION are made.",
    "round.done": "d1, d2 or d3 is trained: images in an epoch, error on images it was not trained on,"
    " labels that look wrong.",
    "select.opened": "The page on which a person makes a selection is open: its address and what it shows.",
    "service.away": "The service does not answer; the watcher waits.",
    "service.back": "The service answers again.",
    "service.started": "The service listens: its address and its ensembles.",
    "service.starting": "A service is started.",
    "service.stopped": "The service has ended.",
    "service.stopping": "The service finishes the requests that it has and takes no new ones.",
    "session.closed": "The watcher ends: the row counts of the whole session.",
    "session.opened": "The watcher starts or goes on.",
    "sides.merged": "The merged STAR files of the session are renewed.",
    "stack.rejected": "A stack could not be judged, and why.",
    "stack.vanished": "A stack is gone; its verdicts no longer count.",
    "train.done": "The ensemble is written: its digest, threshold and error on held-out groups.",
    "tune.done": "The best trial.",
    "validation.done": "The numbers of a validation.",
    "verdict.overridden": "A person changed a verdict.",
    "verdicts.changed": "A stack was judged again by the session's new profile: images whose verdict changed,"
    " and the counts as they are now.",
    "views.unknown": "Orientations or defocus are not known, so error rates by view are left out.",
}


def settings() -> str:
    """Every tunable, one table for each section."""
    from cryoray.settings import Settings

    sections: dict[str, list[str]] = {}
    for path, row in _tunables(Settings):
        sections.setdefault(path.partition(".")[0] if "." in path else "", []).append(row)
    head = "| setting | default | values | what it is |\n|---|---|---|---|\n"
    return "\n".join(
        (f"## `[{name}]`\n\n" if name else "") + head + "\n".join(rows) + "\n"
        for name, rows in sections.items()
    )


def _tunables(
    model: Any, prefix: str = "", seen: dict[type, str] | None = None
) -> Iterator[tuple[str, str]]:
    """The path and the row of each tunable; a section that stood before is named, not repeated."""
    from pydantic import BaseModel

    seen = {} if seen is None else seen
    for name, field in model.model_fields.items():
        kind, path = field.annotation, f"{prefix}{name}"
        what = field.description or ""
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield path, f"| `{path}` | {_default(field.default)} | {_values(field)} | {what} |"
        elif kind in seen:
            yield path, f"| `{path}.…` | – | as `{seen[kind]}.…` | {what} |"
        else:
            seen[kind] = path
            yield from _tunables(kind, f"{path}.", seen)


def _default(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Path):
        return f"`{value}`".replace(str(Path.home()), "~")
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(field: Any) -> str:
    from annotated_types import Ge, Gt, Le, Lt

    names, metadata = _unwrap(field.annotation)
    signs: Mapping[type, Callable[[Any], str]] = {
        Ge: lambda bound: f"≥ {bound.ge:g}",
        Gt: lambda bound: f"> {bound.gt:g}",
        Le: lambda bound: f"≤ {bound.le:g}",
        Lt: lambda bound: f"< {bound.lt:g}",
    }
    bounds = [one for one in (*metadata, *field.metadata) if type(one) in signs]
    return " ".join([names, *(signs[type(bound)](bound) for bound in bounds)])


def _unwrap(kind: Any) -> tuple[str, tuple[Any, ...]]:
    """What a person may write, and the bounds on it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        name, metadata = _unwrap(arguments[0])
        return name, (*metadata, *arguments[1:])
    if origin in (Union, types.UnionType):
        arms = [_unwrap(one) for one in arguments if one is not type(None)]
        return " or ".join(name for name, _ in arms), arms[0][1]
    if origin is Literal:
        return " or ".join(map(str, arguments)), ()
    if origin is dict:
        return "table", ()
    if origin is tuple:
        return f"list of {_unwrap(arguments[0])[0]}", ()
    return {
        "int": "integer",
        "float": "number",
        "str": "text",
        "bool": "true or false",
        "Path": "path",
    }[kind.__name__], ()


def commands() -> str:
    """Every command with its options, from the application itself."""
    import typer.main

    from cryoray.cli.main import app

    application = cast(Any, typer.main.get_command(app))
    return "\n".join(
        _command(f"cryoray {name}", command)
        for name, command in application.commands.items()
        if not command.hidden
    )


def _command(name: str, command: Any, level: int = 2) -> str:
    context = command.context_class(command, info_name=name)
    parts = [f"{'#' * level} `{name}`\n\n{_prose(command.help or '')}\n"]
    if not hasattr(command, "commands"):
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts.append(f"```text\n{usage}\n```\n")
    records: dict[str, list[tuple[str, str]]] = {}
    for one in command.params:
        record = one.get_help_record(context)
        if record is not None:
            records.setdefault(one.rich_help_panel or "", []).append(record)
    for panel, rows in records.items():
        head = f"**{panel}**\n\n" if panel else ""
        body = "".join(f"| `{_cell(left)}` | {_cell(right)} |\n" for left, right in rows)
        parts.append(f"{head}| option | what it is |\n|---|---|\n{body}")
    for sub, inner in getattr(command, "commands", {}).items():
        parts.append(_command(f"{name} {sub}", inner, level + 1))
    return "\n".join(parts)


def _prose(text: str) -> str:
    return re.sub(r"[ \t]*\n[ \t]*", "\n", text).replace("\b", "").strip()


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def programs() -> str:
    """What the programs for RELION and cryoSPARC say of themselves."""
    from cryoray.cli import class_ranker, cryosparc_job, relion_job

    return "\n".join(
        f"## `{name}`\n\n```text\n{_help(name, main)}```\n"
        for name, main in (
            ("cryoray-class-ranker", class_ranker.main),
            ("cryoray-relion", relion_job.main),
            ("cryoray-cryosparc", cryosparc_job.main),
        )
    )


def _help(name: str, main: Callable[[], object]) -> str:
    text = io.StringIO()
    asked = patch.multiple(sys, argv=[name, "--help"])
    with asked, contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main()
    return text.getvalue()


def features_of_particles() -> str:
    """The metadata of particles that networks may see."""
    from cryoray.preparation.features import FEATURES

    return _features([one for one in FEATURES if "particle" in one.kinds])


def features_of_classes() -> str:
    """The metadata and measurements of 2D classes, without their ranks and z-scores."""
    from cryoray.preparation.features import FEATURES

    return _features([one for one in FEATURES if "class2d" in one.kinds and not one.within])


def _features(features: list[Any]) -> str:
    head = "| feature | made of | unit | transform | what it is | documented in |\n"
    rows = (
        f"| `{one.name}` | {', '.join(f'`{column}`' for column in one.columns)} | {one.unit or '–'} "
        f"| {one.transform or '–'} | {one.documentation} | {one.source} |\n"
        for one in features
    )
    return head + "|---" * 6 + "|\n" + "".join(rows)


def verdict_columns() -> str:
    """The columns of `verdicts.parquet`."""
    from cryoray.records import VERDICTS_SCHEMA

    return _schema(VERDICTS_SCHEMA)


def quarantine_columns() -> str:
    """The columns of `quarantine.parquet`."""
    from cryoray.records import QUARANTINE_SCHEMA

    return _schema(QUARANTINE_SCHEMA)


def particle_columns() -> str:
    """The columns of `particles.parquet`, without the features."""
    from cryoray.records import particles_schema

    return _schema(particles_schema(()))


def _schema(schema: Any) -> str:
    rows = "".join(f"| `{one.name}` | {one.type} |\n" for one in schema)
    return f"| column | type |\n|---|---|\n{rows}"


def http() -> str:
    """The service's addresses, from its own OpenAPI."""
    description = _openapi()
    schemas = description["components"]["schemas"]
    parts = []
    for path, methods in description["paths"].items():
        for method, one in methods.items():
            token = "bearer token" if one.get("security") else "no token"
            parts.append(
                f"## `{method.upper()} {path}`\n\n{one.get('description', '').strip()}\n\n*{token}*\n"
            )
            for kind, body in one.get("requestBody", {}).get("content", {}).items():
                parts.append(f"Body: `{kind}`\n")
                if body["schema"].get("properties"):
                    parts.append(_properties(body["schema"]))
            statuses = ((status, of["description"]) for status, of in one["responses"].items())
            body = "".join(f"| {status} | {what} |\n" for status, what in statuses)
            parts.append(f"| status | meaning |\n|---|---|\n{body}")
    messages = (f"### {name}\n\n{_properties(one)}" for name, one in schemas.items())
    return "\n".join([*parts, "## Messages\n", *messages])


def _openapi() -> dict[str, Any]:
    from cryoray.serving.application import create
    from cryoray.serving.counts import Counts
    from cryoray.settings import ServeSettings

    nothing = cast(Any, SimpleNamespace(beside=None))
    settings = ServeSettings(token="documentation-" + "0123456789abcdef" * 2)
    return create(settings, nothing, nothing, Counts(1)).openapi()


def _properties(schema: Mapping[str, Any]) -> str:
    described = (schema.get("description") or "").strip().split("\n\n")[0].replace("\n", " ")
    rows = "".join(
        f"| `{name}` | {_type(one)} | {_cell(one.get('description', ''))} |\n"
        for name, one in schema.get("properties", {}).items()
    )
    return f"{described}\n\n| field | type | what it is |\n|---|---|---|\n{rows}"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    if schema.get("type") == "array":
        inner = schema.get("items") or {"type": schema["prefixItems"][0]["type"]}
        return f"list of {_type(inner)}"
    return str(schema.get("format") or schema.get("type", "any"))


def metrics() -> str:
    """What `/metrics` has, from the registry of the service itself."""
    from prometheus_client.metrics import MetricWrapperBase

    from cryoray.serving.counts import Counts
    from cryoray.serving.sessions import OpenSessions

    counts = Counts(1)
    own = [one for one in vars(counts).values() if isinstance(one, MetricWrapperBase)]
    rows = []
    for metric in own:
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((name, metric._labelnames, family.type, family.documentation))
    empty = cast(Any, SimpleNamespace(sessions=list))
    for family in OpenSessions(empty).collect():
        labels = tuple(family.samples[0].labels)
        rows.append((family.name, labels, family.type, family.documentation))
    body = "".join(
        f"| `{name}{'{' + ','.join(labels) + '}' if labels else ''}` | {kind} | {what} |\n"
        for name, labels, kind, what in sorted(rows)
    )
    return f"| metric | type | what it is |\n|---|---|---|\n{body}"


def events() -> str:
    """Every event that the code raises, with the sentence on it and the fields that stand in the code."""
    fields = {**dict.fromkeys(EVENTS, ()), **raised()}
    rows = "".join(
        f"| `{name}` | {EVENTS.get(name, '–')} | {', '.join(f'`{one}`' for one in of)} |\n"
        for name, of in sorted(fields.items())
    )
    return f"| event | when | data |\n|---|---|---|\n{rows}"


def raised() -> dict[str, list[str]]:
    """The names of all events in the code, each with those of its fields that are written out there."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "cryoray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name, data in _event(node):
                known = found.setdefault(name, [])
                known += [one for one in data if one not in known]
    return found


def _event(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """What one expression raises: ``Event(NAME, DATA)`` or a session's ``Happened(ID, NAME, DATA)``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return
    at = {"Event": 0, "Happened": 1}.get(node.func.id)
    if at is None or len(node.args) <= at:
        return
    given = node.args[at]
    arms = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
    data = node.args[at + 1] if len(node.args) > at + 1 else None
    keys = data.keys if isinstance(data, ast.Dict) else []
    fields = [str(key.value) for key in keys if isinstance(key, ast.Constant)]
    for arm in arms:
        if isinstance(arm, ast.Constant) and isinstance(arm.value, str):
            yield arm.value, fields


def python() -> str:
    """What ``import cryoray`` offers, by mkdocstrings."""
    import cryoray

    return "\n".join(
        f"::: {_defined(name)}\n    options:\n      heading_level: 2\n" for name in cryoray.__all__
    )


def _defined(name: str) -> str:
    import cryoray

    module, _, attribute = cryoray._WHERE[name].partition(":")
    return f"{module}.{attribute or name}"


def measured(of: str) -> str:
    """The sections of RESULTS.md on one question: speed, maps or accuracy."""
    _, *sections = re.split(r"^(?=## )", RESULTS.read_text("utf-8"), flags=re.MULTILINE)
    return "".join(section for section in sections if _question(section) == of)


def _question(section: str) -> str:
    command = re.search(r"benchmarks\.(\w+)\.(\w+)", section.partition("\n")[0])
    if command is None:
        return "accuracy"
    if command[1] == "speed" and command[2] != "similarity":
        return "speed"
    return "maps" if command[2] in ("workflow", "junk", "similarity") else "accuracy"


def included(name: str) -> str:
    """A file of the repository without its title, headings one level deeper where it has several."""
    return (ROOT / name).read_text("utf-8").partition("\n")[2]


def card(kind: str) -> str:
    """The card of an ensemble that ships, as a part of a page."""
    text = (ROOT / f"cryoray/ensembles/{kind}/card.md").read_text("utf-8")
    return _HEADING.sub(r"#\1", text)


MADE: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "commands": commands,
    "programs": programs,
    "features-of-particles": features_of_particles,
    "features-of-classes": features_of_classes,
    "verdict-columns": verdict_columns,
    "quarantine-columns": quarantine_columns,
    "particle-columns": particle_columns,
    "http": http,
    "metrics": metrics,
    "events": events,
    "python": python,
    "speed": lambda: measured("speed"),
    "accuracy": lambda: measured("accuracy"),
    "maps": lambda: measured("maps"),
    "security": lambda: included("SECURITY.md"),
    "changes": lambda: included("CHANGELOG.md"),
    "contributing": lambda: included("CONTRIBUTING.md"),
    "cluster": lambda: included("cluster/README.md"),
    "card-of-particles": lambda: card("particle"),
    "card-of-classes": lambda: card("class2d"),
}


def on_page_markdown(markdown: str, **_: object) -> str:
    """The hook of mkdocs: a page with its markers replaced.

    Raises:
        KeyError: a marker names nothing that is made here.
    """
    return _MARKER.sub(lambda found: MADE[found[1]](), markdown)


if __name__ == "__main__":
    print(MADE[sys.argv[1]]())
