"""The method of a finished run, out of its configuration."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping
from typing import Any

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.mace import Mace


def chosen(given: Any) -> ClosedForm:
    """The closed form that ``model.method`` of a configuration names; ``Mace`` where it names none.

    Args:
        given: None, or ``class_path`` with ``init_args``, in which there may be such a mapping again.

    Raises:
        UserError: it names no closed form.
    """
    if given is None:
        return Mace()
    method = pydoc.locate(given["class_path"])
    if not (isinstance(method, type) and issubclass(method, ClosedForm)):
        raise UserError(f"model.method: {given['class_path']} is no closed form of this installation.")
    settings = {
        name: chosen(value) if isinstance(value, dict) and "class_path" in value else value
        for name, value in (given.get("init_args") or {}).items()
    }
    made: ClosedForm = method(**settings)
    return made


def source_of(config: Mapping[str, Any]) -> str:
    """Name and paper of the method of a run's configuration, which may be empty."""
    return chosen((config.get("model") or {}).get("method")).source
