"""Commands that are one function: its parameters are the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import docstring_parser  # jsonargparse reads the options' texts by it too
from jsonargparse import ArgumentError

from mace_pl.commands.command_line import ProjectConfig
from mace_pl.commands.explained import explained
from mace_pl.commands.parsing import CommandParser
from mace_pl.errors import UserError
from mace_pl.files.screen import program


def call(command: str, function: Callable[..., Any], args: list[str], words: str = "") -> Any:
    """Run a function with options named after its parameters.

    Args:
        command: its name.
        function: what is run.
        args: what was typed behind the command.
        words: the parameter that is given as plain words: one, or several where it is a list.

    Raises:
        UserError: an option that does not exist, or a value of another type.
    """
    says = docstring_parser.parse(inspect.getdoc(function) or "")
    parser = CommandParser(prog=f"{program()} {command}", exit_on_error=False, description=says.short_description)
    parser.add_argument("--config", action=ProjectConfig, help="YAML file of settings; later ones win")
    if words:
        meaning = next((p.description for p in says.params if p.arg_name == words), None)
        many = str(inspect.signature(function).parameters[words].annotation).startswith("list")
        parser.add_argument(words, nargs="+" if many else None, type=str, help=meaning)
    parser.add_function_arguments(function, as_group=False, skip={words} if words else set())
    try:
        settings = parser.instantiate(parser.parse_args(args))
    except ArgumentError as error:
        options = [name for name in inspect.signature(function).parameters if name != words]
        options += [name for name in parser.get_defaults().keys() if "." in name]  # noqa: SIM118 - no mapping
        raise UserError(explained(error, options)) from error
    return function(**{name: settings[name] for name in inspect.signature(function).parameters})
