"""Commands that are one function: its parameters are the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError, auto_cli

from mace_pl.commands.command_line import explained
from mace_pl.commands.parsing import CommandParser, check_configs
from mace_pl.errors import UserError
from mace_pl.files.paths import with_bundled


def call(function: Callable[..., Any], args: list[str]) -> Any:
    """Run a function with options named after its parameters.

    Raises:
        UserError: an option that does not exist, or a value of another type.
    """
    try:
        resolved = with_bundled(args)
        check_configs(resolved)
        return auto_cli(function, args=resolved, as_positional=False, exit_on_error=False, parser_class=CommandParser)
    except ArgumentError as error:
        raise UserError(explained(error, inspect.signature(function).parameters)) from error
