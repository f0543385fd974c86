"""LoRAs of any program: which layer each key of a file belongs to, and W + (α / R) B A; nothing is left out.

Legend: D input width of a layer, O output width, R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.export.single_file import UNET_PREFIX, has_original_names, unet_names
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline

#: what the names of kohya's sd-scripts begin with, by part
KOHYA = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
PEFT = "base_model.model."
CONFIG = "adapter_config.json"
KEY = re.compile(
    r"(?P<layer>.+?)(?:(?P<old>_lora\.)|\.lora\.|\.lora_linear_layer\.|\.lora_)"
    r"(?P<side>down|up|A|B)(?:\.default)?\.weight"
)
OTHERS = {
    "DoRA (scales beside the LoRA)": ("dora_scale", "lora_magnitude_vector"),
    "LoHa": ("hada_",),
    "LoKr": ("lokr_",),
    "a LoRA of convolutions with a core": ("lora_mid",),
    "whole differences or biases": (".diff", "bias"),
}
HINT = "Merge it into the model with the program that made it, and give the merged model as --model.pretrained."


@dataclass
class Layer:
    """One layer of a LoRA: A [R, D], B [O, R], α where the file has it."""

    A: Tensor | None = None
    B: Tensor | None = None
    alpha: float | None = None


@dataclass
class Scaling:
    """α and its rule, for layers without an α of their own, as PEFT writes them."""

    alpha: float | None = None
    patterns: dict[str, float] = field(default_factory=dict)
    root: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], prefix: str = "") -> Scaling:
        """From PEFT's settings, those that begin with ``prefix``."""
        alpha, patterns = settings.get(f"{prefix}lora_alpha"), settings.get(f"{prefix}alpha_pattern") or {}
        return cls(alpha, dict(patterns), bool(settings.get(f"{prefix}use_rslora")))

    def scale(self, layer: str, own: float | None, rank: int) -> float:
        """α / R, or α / √R; 1 where nothing says otherwise."""
        alpha = own
        if alpha is None:
            alpha = self.patterns.get(get_pattern_key(list(self.patterns), layer), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.root else rank)


def merge_lora(pipeline: Pipeline, path: Path, setting: str) -> None:
    """Add a LoRA to the weights of UNet and text encoders.

    Args:
        pipeline: changed in place, once the whole file is known to fit.
        path: a safetensors file in the names of kohya, diffusers or PEFT, or a folder that PEFT wrote.
        setting: the option that named it, for messages.

    Raises:
        UserError: something in the file would be left out, or does not fit.
    """
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    where = f"{setting}: {path}"
    tensors, header = _read(file, where)
    scalings = _scalings(file, tensors, header, where)
    layers = _layers(tensors, where)
    names = layer_names(pipeline)
    unknown = [name for name in layers if name not in names]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"{where} changes layers that this model does not have: {', '.join(unknown[:3])}{more} ({len(unknown)} of "
            f"its {len(layers)} layers). Give the model that it was made for."
        )
    changed = {}
    for name, layer in layers.items():
        part, layer_name = names[name]
        module = getattr(pipeline, part).get_submodule(layer_name)
        if (part, layer_name) in changed:
            raise UserError(f"{where} holds the layer {layer_name} of the {part} twice. {HINT}")
        changed[part, layer_name] = module, merged(module.weight, layer, scalings[part], layer_name, where)
    with torch.no_grad():
        for module, weight in changed.values():
            module.weight.copy_(weight)


def merged(weight: Tensor, layer: Layer, scaling: Scaling, name: str, where: str) -> Tensor:
    """W + s B A in the shape of W, formed in float64.

    Raises:
        UserError: half of the layer is missing, it does not fit the weight, or it is not finite.
    """
    if layer.A is None or layer.B is None:
        raise UserError(f"{where} holds only a half of layer {name}. Get the file again.")
    A_RD, B_OR = layer.A.double().flatten(1), layer.B.double().flatten(1)
    fits = len(A_RD) == B_OR.shape[1] and (len(B_OR), A_RD.shape[1]) == tuple(weight.flatten(1).shape)
    if not fits:
        raise UserError(
            f"{where} does not fit layer {name}: {tuple(layer.B.shape)} × {tuple(layer.A.shape)}, where the model has "
            f"{tuple(weight.shape)}. Give the model that it was made for."
        )
    delta = scaling.scale(name, layer.alpha, len(A_RD)) * B_OR @ A_RD
    if not bool(torch.isfinite(delta).all()):
        raise UserError(f"{where} has values in layer {name} that are not finite. Get the file again.")
    return weight.double() + delta.view(weight.shape).to(weight.device)


def layer_names(pipeline: Pipeline) -> dict[str, tuple[str, str]]:
    """Part and module by every name that programs give a layer."""
    names: dict[str, tuple[str, str]] = {}
    for part, prefixes in KOHYA.items():
        model = getattr(pipeline, part, None)
        for name, module in model.named_modules() if model is not None else ():
            if getattr(module, "weight", None) is None or module.weight.ndim not in (2, 4):
                continue
            bare = name.removeprefix("text_model.")  # which only some versions of transformers have
            for own in (name,) if part == "unet" else (bare, f"text_model.{bare}"):
                spellings = [f"{part}.{own}", *[f"{prefix}{own.replace('.', '_')}" for prefix in prefixes]]
                names |= dict.fromkeys([*spellings, own, f"{PEFT}{own}"] if part == "unet" else spellings, (part, name))
    if has_original_names(backbone_of(pipeline).network):
        for original, own in unet_names(backbone_of(pipeline).network).items():
            layer = original.removeprefix(UNET_PREFIX).removesuffix(".weight").replace(".", "_")
            if original.endswith(".weight") and ("unet", own[0].removesuffix(".weight")) in names.values():
                names[f"lora_unet_{layer}"] = ("unet", own[0].removesuffix(".weight"))
    return names


def _read(file: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise UserError(f"{where} has no {file.name}. Give a LoRA in safetensors; pickles (.bin, .pt) are not loaded.")
    try:
        with safe_open(str(file), framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return tensors, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{where} is no readable safetensors file ({error}). Get it again.") from error


def _layers(tensors: Mapping[str, Tensor], where: str) -> dict[str, Layer]:
    """The layers by the names that the file gives them.

    Raises:
        UserError: a key that is no part of an ordinary LoRA.
    """
    layers: dict[str, Layer] = {}
    left = []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match:
            name = match["layer"]
            if match["old"]:  # attention processors, as older versions of diffusers wrote them
                name = name.replace(".processor.", ".")
                name = f"{name}.0" if name.endswith(".to_out") else name
            side = "A" if match["side"] in ("down", "A") else "B"
            setattr(layers.setdefault(name, Layer()), side, tensor)
        elif key.endswith(".alpha") and tensor.numel() == 1:
            layers.setdefault(key.removesuffix(".alpha"), Layer()).alpha = float(tensor)
        else:
            left.append(key)
    if left:
        kinds = [kind for kind, marks in OTHERS.items() if any(mark in key for key in left for mark in marks)]
        raise UserError(
            f"{where} is no ordinary LoRA{f', but {kinds[0]}' if kinds else ''}: {len(left)} of its {len(tensors)} "
            f"keys would be left out, as {left[0]}. {HINT}"
        )
    if not layers:
        raise UserError(f"{where} names no layer of this model: it is empty. Give a LoRA.")
    return layers


def _scalings(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], where: str) -> dict[str, Scaling]:
    """How layers without an α are scaled, by part: PEFT's configuration, or what diffusers puts into the header."""
    if any(key.startswith(PEFT) for key in tensors):
        config = file.with_name(CONFIG)
        if not config.is_file():
            raise UserError(
                f"{where} has PEFT's names, and its alpha is in {CONFIG}, which is not beside it. Put it there."
            )
        settings = _settings(config.read_text(encoding="utf-8"), f"{where}: its {CONFIG}")
        odd = [f"{k}={settings[k]}" for k in ("use_dora", "fan_in_fan_out", "use_qalora") if settings.get(k)]
        if settings.get("peft_type", "LORA") != "LORA" or odd:
            unsupported = odd[0] if odd else f"peft_type={settings['peft_type']}"
            raise UserError(f"{where} is no ordinary LoRA: its {CONFIG} has {unsupported}. {HINT}")
        return dict.fromkeys(KOHYA, Scaling.of(settings))
    said = _settings(header.get("lora_adapter_metadata", "{}"), f"{where}: its header")
    return {part: Scaling.of(said, f"{part}.") for part in KOHYA}


def _settings(text: str, where: str) -> dict[str, Any]:
    """The settings of a LoRA, as PEFT writes them.

    Raises:
        UserError: damaged.
    """
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is no JSON ({error}). Get the LoRA again.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{where} holds no settings, but {settings!r}. Get the LoRA again.")
    return settings
