"""The help of each command: one sentence, an example that is right, options that say what they are."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator
from typing import Any, cast

import pytest
import typer.main

from cryoray.cli.main import app


def commands(command: Any = None, name: str = "cryoray") -> Iterator[tuple[str, Any]]:
    """Every command that is not hidden, by what one types."""
    group = command or cast(Any, typer.main.get_command(app))
    for word, one in group.commands.items():
        if one.hidden:
            continue
        if hasattr(one, "commands"):
            yield from commands(one, f"{name} {word}")
        else:
            yield f"{name} {word}", one


COMMANDS = dict(commands())


def paragraphs(name: str) -> list[str]:
    return inspect.cleandoc(COMMANDS[name].help).split("\n\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_it_begins_with_one_sentence(name: str) -> None:
    first = paragraphs(name)[0]
    assert first.endswith(".")
    assert ". " not in first


@pytest.mark.parametrize("name", COMMANDS)
def test_its_example_is_one_that_the_command_takes(name: str) -> None:
    (example,) = [one for one in paragraphs(name) if one.startswith("Example: ")]
    typed = example.removeprefix("Example: ")
    assert f"{typed} ".startswith(f"{name} ")
    arguments = shlex.split(typed.removeprefix(name))
    command = COMMANDS[name]
    with command.make_context(
        name, arguments
    ) as context:  # raises where something is missing or unknown
        assert set(context.params)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_in_a_sentence(name: str) -> None:
    for one in COMMANDS[name].params:
        if getattr(one, "hidden", False):
            continue
        assert one.help, one.name
        assert one.help.startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")), one.name
        assert one.help.endswith("."), one.name
