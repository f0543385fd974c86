"""The base model of a run: where it was, or where it is now, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError
from mace_pl.files.paths import hub_id, model_name, resolve
from mace_pl.models.backbone import backbone_of
from mace_pl.models.loading import MODELS, variants_of
from mace_pl.models.pipeline import BASE_SETTINGS, load_base, unet_fingerprint
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source
from mace_pl.models.text_encoding import encoder_fingerprint

PLACES_OF_BASE = ("pretrained", "layout")


def base_hashes(pipeline: Pipeline) -> dict[str, str]:
    """SHA-256 of the weights of text encoder and UNet, by which a base model is known again."""
    return {"text_encoder": encoder_fingerprint(pipeline), "unet": unet_fingerprint(backbone_of(pipeline).network)}


@dataclass(frozen=True)
class BaseModel:
    """The model that a run edited.

    Attributes:
        name: how files that are passed on name it: by hub id, or by the last part of its path.
        pretrained: folder, hub id or single checkpoint.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder or hub id with the configurations of a single checkpoint's parts.
        kinds: ``path`` or ``hub`` of ``pretrained`` and ``layout``, so that no path becomes a hub id elsewhere.
        text_encoder: SHA-256 of its text encoder; None where the run does not say.
        unet: SHA-256 of its UNet; likewise.
    """

    name: str
    pretrained: str
    revision: str | None = None
    variant: str | None = None
    layout: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    text_encoder: str | None = None
    unet: str | None = None

    @staticmethod
    def of(model: Mapping[str, Any], text_encoder: str | None = None, unet: str | None = None) -> BaseModel:
        """The base of a new run, from the ``model`` part of its configuration and the hashes of what was loaded."""
        settings: dict[str, Any] = {key: model.get(key) for key in BASE_SETTINGS}
        given = {key: settings[key] for key in PLACES_OF_BASE if settings[key] is not None}
        kinds = {key: "path" if resolve(str(source)).exists() else "hub" for key, source in given.items()}
        return BaseModel(model_name(model["pretrained"]), kinds=kinds, text_encoder=text_encoder, unet=unet, **settings)

    @staticmethod
    def read(model: Mapping[str, Any], made: Mapping[str, Any]) -> BaseModel:
        """The base of a run that was written.

        Args:
            model: that part of its configuration; may be empty.
            made: what its edit says it was made from.
        """
        name = made.get("pretrained", "unknown")
        settings: dict[str, Any] = {"pretrained": name} | {k: model[k] for k in BASE_SETTINGS if k in model}
        hashes: dict[str, Any] = {key: made.get(key) for key in ("text_encoder", "unet")}
        return BaseModel(name, kinds=made.get("base", {}), **settings, **hashes)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of :func:`mace_pl.models.pipeline.load_pipeline`, as under ``model`` of a configuration."""
        return {name: getattr(self, name) for name in BASE_SETTINGS}

    def applied(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The ``model`` part of a configuration with the base where it is now, and with it statistics in its folder."""
        prior, old, new = model.get("prior"), Path(str(model.get("pretrained"))), Path(self.pretrained)
        found = dict(model) | self.settings
        if isinstance(prior, str) and old != new and old in Path(prior).parents:
            found["prior"] = str(new / Path(prior).relative_to(old))
        return found

    @property
    def provenance(self) -> dict[str, Any]:
        """What files that are passed on say of it: no path of this machine."""
        hashes = {"text_encoder": self.text_encoder, "unet": self.unet}
        known = {key: value for key, value in hashes.items() if value is not None}
        return {"pretrained": self.name, **known, "base": dict(self.kinds)}

    def load(self, pretrained: str | None = None, layout: str | None = None) -> tuple[Any, Source, BaseModel]:
        """The pipeline, checked against the hashes.

        Args:
            pretrained: where the base is now; where the run found it when None.
            layout: where the layout of a single checkpoint is now; likewise.

        Returns:
            The pipeline, the files that it was read from, and the base with the places where it is now.

        Raises:
            UserError: a path of the run that is not there, or another model; naming the option.
        """
        now: dict[str, Any] = {"pretrained": pretrained, "layout": layout}
        base = replace(self, **{name: place for name, place in now.items() if place is not None})
        for name, place in now.items():
            if place is None:
                self._check_there(name)
        if pretrained is not None:
            base = base._without_what_does_not_go_with(resolve(pretrained))
        try:
            pipeline, source = load_base(base.settings)
        except ValueError as error:
            raise UserError(f"the run's base model: {error} Say where it is now with --pretrained.") from error
        base.check(base_hashes(pipeline), str(base.pretrained))
        return pipeline, source, BaseModel.of(base.settings, self.text_encoder, self.unet)

    def check(self, hashes: Mapping[str, str], source: str, setting: str = "run", option: str = "pretrained") -> None:
        """Refuse another model.

        Args:
            hashes: of the model that was found: :func:`base_hashes`, or one of them.
            source: where it was found.
            setting: the option that named the run, for the message.
            option: the one that names the base.

        Raises:
            UserError: it has other weights than the run's base; naming both options.
        """
        for part, actual in hashes.items():
            if getattr(self, part) not in (None, actual):
                raise UserError(
                    f"{setting}: the {part.replace('_', ' ')} of {source} is not the one that was edited: it has other "
                    f"weights. Give the run's base model ({self.name}) with --{option}."
                )

    def _check_there(self, name: str) -> None:
        """Refuse a path that is gone, before it is taken for a hub id."""
        path = getattr(self, name)
        if path is None or resolve(path).exists():
            return
        if self.kinds.get(name) == "path" or hub_id(path) is None:
            raise UserError(
                f"run: its model.{name}={path} does not exist"
                f"{'' if Path(path).is_absolute() else f' below the working folder {Path.cwd()}'}. Say where it is now "
                f"with --{name}."
            )

    def _without_what_does_not_go_with(self, source: Path) -> BaseModel:
        """Without the settings of another kind of place than the base is in now."""
        fitting = self
        if source.exists():
            fitting = replace(fitting, revision=None)
        if not source.is_file():
            fitting = replace(fitting, layout=None)
        if source.is_file() or (source.is_dir() and not any(self.variant in variants_of(source / p) for p in MODELS)):
            fitting = replace(fitting, variant=None)
        return fitting
