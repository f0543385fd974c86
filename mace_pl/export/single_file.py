"""Checkpoints in one file, in the original layout of Stable Diffusion: diffusers' own loader, run backwards.

The wheel of diffusers converts in the other direction only, so no table of names is kept here. Candidates for names of
the layout, each with a marker as its value, go through the loader's conversion; where a marker comes out is where that
name belongs. What is to be written goes through the same conversion and has to give the model's own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_TO_LDM_MAPPING,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.export.base_model import stored_dtype
from mace_pl.export.metadata import family
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Network, Pipeline
from mace_pl.models.source import Source

Tensors = dict[str, Tensor]
Names = dict[str, list[str]]  # name in the original layout to the names in diffusers that it holds, in their order
Convert = Callable[[Tensors], Tensors]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
OPEN_CLIP_LAYER = ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj")
ENDS = ("weight", "bias")


def single_file(pipeline: Pipeline, source: Source, dtype: torch.dtype | None) -> Tensors:
    """The tensors of UNet, VAE and text encoders under their original names.

    Args:
        pipeline: a Stable Diffusion 1.x, 2.x or XL pipeline.
        source: the files that it was read from.
        dtype: of all tensors; each part keeps the one in which its base is stored when None.

    Raises:
        UserError: a part that diffusers' single-file loader would not give back.
    """
    tensors: Tensors = {}
    for part, names, convert in _layout(pipeline):
        stored = dtype or stored_dtype(pipeline, source, part)
        tensors_of = {n: t.detach().cpu().to(stored) for n, t in own_tensors(getattr(pipeline, part)).items()}
        converted = {name: _joined(name, [tensors_of[n] for n in parts]) for name, parts in names.items()}
        back = convert(converted)
        wrong = [n for n in tensors_of if n not in back or not torch.equal(back[n], tensors_of[n])] + sorted(
            set(back) - set(tensors_of)
        )
        if wrong:
            raise _refusal(part, wrong[0])
        tensors |= converted
    return tensors | _marks(pipeline)


def _marks(pipeline: Pipeline) -> Tensors:
    """Empty tensors by which other programs know that an SDXL checkpoint predicts v, and to zero terminal SNR."""
    settings = pipeline.scheduler.config
    if family(pipeline) != "sdxl" or settings.get("prediction_type") != "v_prediction":
        return {}
    names = ["v_pred", *(["ztsnr"] if settings.get("rescale_betas_zero_snr") else [])]
    return {name: torch.empty(0) for name in names}


def check_single_file(pipeline: Pipeline) -> None:
    """Refuse a pipeline that cannot be written as a single file, before anything is trained.

    Raises:
        UserError: naming the part and its first parameter without a place in the layout.
    """
    _layout(pipeline)


def unet_names(unet: Network) -> Names:
    """Original names of the UNet's parameters.

    Raises:
        UserError: a UNet that the layout cannot hold.
    """
    if not isinstance(unet.config.layers_per_block, int):
        raise _refusal("unet", f"layers_per_block={unet.config.layers_per_block}")
    return _backwards("unet", unet, _unet_candidates(unet), _unet_convert(unet))


def has_original_names(unet: Network) -> bool:
    """Whether the layout can hold the UNet."""
    try:
        unet_names(unet)
    except ValueError:
        return False
    return True


def own_tensors(module: Network) -> Tensors:
    """A part's parameters; text encoders without the ``text_model.`` that only some versions of transformers have."""
    return _without_wrapper(module.state_dict())


def _layout(pipeline: Pipeline) -> list[tuple[str, Names, Convert]]:
    """Each part with its names and the loader's conversion."""
    unet, vae = backbone_of(pipeline).network, backbone_of(pipeline).autoencoder
    if not isinstance(vae, AutoencoderKL):
        raise _refusal("vae", type(vae).__name__)
    convert_vae = partial(convert_ldm_vae_checkpoint, config=vae.config)
    parts: list[tuple[str, Names, Convert]] = [
        ("unet", unet_names(unet), _unet_convert(unet)),
        ("vae", _backwards("vae", vae, _vae_candidates(vae), convert_vae), convert_vae),
    ]
    if family(pipeline) == "sdxl":
        parts.append(_clip(pipeline, "text_encoder", "conditioner.embedders.0.transformer."))
        parts.append(_open_clip(pipeline, "text_encoder_2", "conditioner.embedders.1.model."))
    elif family(pipeline) == "sd1":
        parts.append(_clip(pipeline, "text_encoder", "cond_stage_model.transformer."))
    else:  # OpenCLIP
        parts.append(_open_clip(pipeline, "text_encoder", "cond_stage_model.model."))
    return parts


def _backwards(part: str, module: Network, candidates: list[str], convert: Convert, width: int = 1) -> Names:
    """Which of the candidates the loader puts where; ``width`` is that of stacked projections, q, k and v."""
    marks = {name: torch.full((3 * width if "in_proj" in name else width, 1), i) for i, name in enumerate(candidates)}
    tensors = own_tensors(module)
    names: Names = {}
    for name, mark in convert(marks).items():
        if name in tensors:
            names.setdefault(candidates[int(mark.flatten()[0])], []).append(name)
    missing = set(tensors) - {name for parts in names.values() for name in parts}
    if missing:
        raise _refusal(part, min(missing))
    return names


def _unet_convert(unet: Network) -> Convert:
    return partial(convert_ldm_unet_checkpoint, config=unet.config)


def _unet_candidates(unet: Network) -> list[str]:
    parameters, layers = list(unet.state_dict()), unet.config.layers_per_block + 1
    attention = sorted({n.split(".attentions.")[1].split(".", 1)[1] for n in parameters if ".attentions." in n})
    resnet = [f"{inner}.{end}" for inner in RESNET for end in ENDS]
    mapping = DIFFUSERS_TO_LDM_MAPPING["unet"]
    names = [*mapping["layers"].values(), *mapping["addition_embed_type"].values()]
    names += [f"middle_block.{i}.{inner}" for i in (0, 2) for inner in resnet]
    names += [f"middle_block.1.{inner}" for inner in attention]
    for i in range(1, len(unet.config.down_block_types) * layers):
        names += [f"input_blocks.{i}.0.{inner}" for inner in [*resnet, "op.weight", "op.bias"]]
        names += [f"input_blocks.{i}.1.{inner}" for inner in attention]
    for i in range(len(unet.config.up_block_types) * layers):
        block, layer = divmod(i, layers)
        attended = any(n.startswith(f"up_blocks.{block}.attentions.{layer}.") for n in parameters)
        names += [f"output_blocks.{i}.0.{inner}" for inner in resnet]
        names += [f"output_blocks.{i}.1.{inner}" for inner in attention if attended]
        names += [f"output_blocks.{i}.{2 if attended else 1}.conv.{end}" for end in ENDS]  # the upsampler comes last
    return [f"{UNET_PREFIX}{name}" for name in names]


def _vae_candidates(vae: Network) -> list[str]:
    parameters, layers = list(vae.state_dict()), vae.config.layers_per_block
    resnet = sorted({n.split(".resnets.")[1].split(".", 1)[1] for n in parameters if ".resnets." in n})
    resnet = [inner.replace("conv_shortcut", "nin_shortcut") for inner in resnet]
    names = list(DIFFUSERS_TO_LDM_MAPPING["vae"].values())
    for side in ("encoder", "decoder"):
        names += [f"{side}.mid.block_{j}.{inner}" for j in (1, 2) for inner in resnet]
        names += [f"{side}.mid.attn_1.{inner}.{end}" for inner in ("norm", "q", "k", "v", "proj_out") for end in ENDS]
    for i in range(len(vae.config.down_block_types)):
        names += [f"encoder.down.{i}.block.{j}.{inner}" for j in range(layers) for inner in resnet]
        names += [f"decoder.up.{i}.block.{j}.{inner}" for j in range(layers + 1) for inner in resnet]
        names += [f"encoder.down.{i}.downsample.conv.{end}" for end in ENDS]
        names += [f"decoder.up.{i}.upsample.conv.{end}" for end in ENDS]
    return [f"{VAE_PREFIX}{name}" for name in names]


def _clip(pipeline: Pipeline, part: str, prefix: str) -> tuple[str, Names, Convert]:
    """OpenAI's CLIP keeps the names of transformers."""

    def convert(tensors: Tensors) -> Tensors:
        return _without_wrapper(convert_ldm_clip_checkpoint(tensors))

    return part, {f"{prefix}text_model.{n}": [n] for n in own_tensors(getattr(pipeline, part))}, convert


def _open_clip(pipeline: Pipeline, part: str, prefix: str) -> tuple[str, Names, Convert]:
    """OpenCLIP has names of its own and stacks q, k and v."""
    encoder = getattr(pipeline, part)

    def convert(tensors: Tensors) -> Tensors:
        return _without_wrapper(convert_open_clip_checkpoint(encoder, tensors, prefix=prefix))

    names = list(DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values())
    for i in range(encoder.config.num_hidden_layers):
        inner = [f"{name}.{end}" for name in OPEN_CLIP_LAYER for end in ENDS]
        inner += [f"attn.in_proj_{end}" for end in ENDS]
        names += [f"transformer.resblocks.{i}.{name}" for name in inner]
    candidates = [f"{prefix}{name}" for name in names]
    return part, _backwards(part, encoder, candidates, convert, encoder.config.hidden_size), convert


def _without_wrapper(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    """The tensor under an original name: q, k and v stacked, projections of the VAE as 1 × 1 convolutions."""
    if name.endswith("text_projection"):
        return parts[0].T
    if ".mid.attn_1." in name and parts[0].ndim == 2:
        return parts[0][:, :, None, None]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _refusal(part: str, what: str) -> UserError:
    return UserError(
        f"single_file: the {part} cannot be written in the original layout ({what} has no place in it that diffusers' "
        f"single-file loader reads). Export pipeline, refined or lora instead."
    )
