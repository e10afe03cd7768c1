"""The README's table of settings; ``python -m tests.architecture.settings_table`` renews it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cryoray.settings import Settings

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def rows(
    model: type[BaseModel], prefix: str = "", seen: dict[type, str] | None = None
) -> Iterator[str]:
    """One line of markdown for each tunable; a section that stood before is named, not repeated."""
    seen = {} if seen is None else seen
    for name, field in model.model_fields.items():
        kind, path = field.annotation, f"{prefix}{name}"
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield f"| `{path}` | {_default(field)} | {_values(field)} | {field.description or ''} |"
        elif kind in seen:
            yield f"| `{path}.…` | – | as `{seen[kind]}.…` | {field.description or ''} |"
        else:
            seen[kind] = path
            yield from rows(kind, f"{path}.", seen)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "–"
    if isinstance(value, Path):
        home = str(Path.home())
        return f"`{value}`".replace(home, "~")
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(field: FieldInfo) -> str:
    names, metadata = _unwrap(field.annotation)
    signs = {Ge: "≥ {0.ge:g}", Gt: "> {0.gt:g}", Le: "≤ {0.le:g}", Lt: "< {0.lt:g}"}
    bounds = [
        signs[type(bound)].format(bound)
        for bound in (*metadata, *field.metadata)
        if type(bound) in signs
    ]
    return " ".join([names, *bounds])


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


def table() -> str:
    """The whole table."""
    return (
        "\n".join(
            ["| setting | default | values | what it is |", "|---|---|---|---|", *rows(Settings)]
        )
        + "\n"
    )


def parts() -> tuple[str, str, str]:
    """The README before, in and after the table."""
    before, rest = README.read_text().split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


if __name__ == "__main__":
    before, _, after = parts()
    README.write_text(before + table() + after)
