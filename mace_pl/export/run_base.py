"""The base model of a finished run: where the run says it is, or where it is now, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError
from mace_pl.files.paths import hub_id, resolve
from mace_pl.models.backbone import backbone_of
from mace_pl.models.loading import MODELS, variants_of
from mace_pl.models.pipeline import load_base, unet_fingerprint
from mace_pl.models.text_encoding import encoder_fingerprint

PLACES_OF_BASE = ("pretrained", "layout")


def base_kinds(model: Mapping[str, Any]) -> dict[str, str]:
    """``path`` or ``hub`` of what names the base in a configuration: a run notes it, so no path becomes a hub id."""
    given = {name: model[name] for name in PLACES_OF_BASE if model.get(name) is not None}
    return {name: "path" if resolve(place).exists() else "hub" for name, place in given.items()}


def load_run_base(
    model: Mapping[str, Any], made: Mapping[str, Any], pretrained: str | None, layout: str | None
) -> tuple[Any, dict[str, Any]]:
    """The base of a run, checked against what the run notes of it.

    Args:
        model: that part of the run's configuration.
        made: what the run's edit says it was made from.
        pretrained: where the base is now; where the configuration says when None.
        layout: where the layout of a single checkpoint is now; likewise.

    Returns:
        The pipeline, and ``model`` with the places where its base is now.

    Raises:
        UserError: a path of the run that is not there, or another model; naming the option.
    """
    found = _places(model, made, {"pretrained": pretrained, "layout": layout})
    if pretrained is not None:
        found = _fitted(found, resolve(pretrained))
    try:
        pipeline = load_base(found)
    except ValueError as error:
        raise UserError(f"the run's base model: {error} Say where it is now with --pretrained.") from error
    _check_same(pipeline, made, str(found["pretrained"]))
    return pipeline, found


def _places(model: Mapping[str, Any], made: Mapping[str, Any], given: Mapping[str, str | None]) -> dict[str, Any]:
    """The settings with the places that were given; the others have to be there."""
    found, kinds = dict(model), made.get("base", {})
    for name in PLACES_OF_BASE:
        if given[name] is not None:
            found[name] = given[name]
        own = found.get(name)
        if own is None or given[name] is not None or resolve(own).exists():
            continue
        if kinds.get(name) == "path" or hub_id(own) is None:
            raise UserError(
                f"run: its model.{name}={own} does not exist"
                f"{'' if Path(own).is_absolute() else f' below the working folder {Path.cwd()}'}. Say where it is now "
                f"with --{name}."
            )
    return found


def _fitted(model: dict[str, Any], place: Path) -> dict[str, Any]:
    """The settings without those that do not go with the place where the base is now."""
    kept = dict(model)
    if place.exists():
        kept["revision"] = None
    if not place.is_file():
        kept["layout"] = None
    if place.is_file() or (place.is_dir() and not any(kept.get("variant") in variants_of(place / p) for p in MODELS)):
        kept["variant"] = None
    return kept


def _check_same(pipeline: Any, made: Mapping[str, Any], place: str) -> None:
    """Refuse another model, by the hashes that the run holds."""
    found = {"text_encoder": encoder_fingerprint(pipeline), "unet": unet_fingerprint(backbone_of(pipeline).network)}
    for part, hashed in found.items():
        if made.get(part) is not None and made[part] != hashed:
            raise UserError(
                f"run: the {part.replace('_', ' ')} of {place} is not the one that was edited: it has other weights. "
                f"Give the run's base model with --pretrained."
            )
