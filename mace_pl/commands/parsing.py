"""The command line's parsers: configurations are UTF-8 in any locale, and any console can show what is printed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch.cli import LightningArgumentParser

from mace_pl.files.tables import read_text, read_yaml


class _Utf8Configs(jsonargparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)
        self.add_argument("--help.all", action="help", help="show every option in full, the Trainer's last, and exit")

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file in UTF-8, where jsonargparse would take the locale's encoding."""
        file = Path(os.fspath(path))
        if not file.is_file():  # an address
            return super().parse_path(path, *args, **kwargs)
        content = read_text(file, "config")
        with contextlib.chdir(file.parent):  # as jsonargparse does: what the file names is beside it
            return self.parse_string(content, file.name, *args, **kwargs)


class LightningParser(_Utf8Configs, LightningArgumentParser):
    """Of subcommands that Lightning runs."""


class CommandParser(_Utf8Configs):
    """Of commands that are plain functions."""


def check_config(path: Path) -> None:
    """Read a configuration, unless it is no file: one may be given as text, which can be too long for a path.

    Raises:
        UserError: naming a file that is no YAML in UTF-8.
    """
    with contextlib.suppress(OSError):
        if not path.is_file():
            return
        read_yaml(path, "config")
