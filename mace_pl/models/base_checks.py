"""What a base model must be: a latent diffusion model from text alone, whole, in weights and settings that agree.

Everything is refused while it is loaded, before an image is generated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from lightning.pytorch.utilities import rank_zero_warn

from mace_pl.errors import Advice, UserError
from mace_pl.models.cross_attention import key_values
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import text_parts

VAES = (AutoencoderKL, AsymmetricAutoencoderKL, AutoencoderTiny)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
FEWEST_WORDS = 16  # without its files a tokenizer knows the begin and the end of a prompt
MOST_TOKENS = 100_000  # of a prompt: a tokenizer without settings of its own says 1e30
FAMILY = "Give a Stable Diffusion 1.x, 2.x or XL model, or one distilled from these."
ADAPTER = re.compile(r"\.(base_layer|lora_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+)\b")
#: under which names an original checkpoint holds a part, by whether it is SDXL
ORIGINAL = {
    False: {"vae": "first_stage_model.", "text_encoder": "cond_stage_model."},
    True: {
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
    },
}
UNET = "model.diffusion_model."
FROM_LATENTS = "first_stage_model.decoder.conv_in.weight"  # its input channels are those of the latents


def check_base(pipeline: Pipeline, pretrained: str) -> None:
    """Refuse a pipeline that cannot be edited, or that generates from something else than text.

    Args:
        pipeline: the whole pipeline.
        pretrained: what the user called it, for messages.

    Raises:
        UserError: a part is missing or of another class, or the parts do not go together; naming them.
    """
    name = f"model.pretrained={pretrained}"
    lacking = [p for p in ("vae", "text_encoder", "tokenizer", "scheduler") if getattr(pipeline, p, None) is None]
    if lacking:
        raise UserError(f"{name} has no {', no '.join(lacking)}. {FAMILY}")
    unet, vae, scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
    if not isinstance(unet, UNet2DConditionModel):
        raise UserError(f"{name}: its unet is a {type(unet).__name__}, not a UNet2DConditionModel. {FAMILY}")
    if not isinstance(vae, VAES):
        allowed = ", ".join(cls.__name__ for cls in VAES)
        raise UserError(f"{name}: its vae is a {type(vae).__name__}; {allowed} can be used. Put one of them there.")
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            f"{name}: its scheduler is a {type(scheduler).__name__}, which has no alphas_cumprod: the model was "
            f"trained on another noise than Stable Diffusion's, which MACE is made for. {FAMILY}"
        )
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS or scheduler.config.get("use_flow_sigmas"):
        raise UserError(
            f"{name}: its scheduler {type(scheduler).__name__} is set to flow matching or an unknown prediction "
            f"(prediction_type={prediction}; {', '.join(PREDICTIONS)} can be used). {FAMILY}"
        )
    check_conditions(pipeline, name)


def check_conditions(pipeline: Pipeline, name: str) -> None:
    """Refuse a UNet that wants more than latents, text and image size, or other ones than its neighbours give.

    Raises:
        UserError: naming what it wants.
    """
    unet, latents = pipeline.unet, pipeline.vae.config.latent_channels
    if unet.config.in_channels != latents:
        raise UserError(
            f"{name}: its UNet takes {unet.config.in_channels} channels, its {type(pipeline.vae).__name__} gives "
            f"{latents}: a model for inpainting, depth, instructions or upscaling, or the VAE of another model. Give "
            f"the text-to-image model that it was made from, or its own VAE."
        )
    broken = [layer for layer, W in key_values(unet).items() if not W.isfinite().all()]
    if broken:
        raise UserError(
            f"{name}: the weights of its layer {broken[0]} are not finite ({len(broken)} such keys and values). Get "
            f"the files of its unet again."
        )
    check_wanted(unet.config, name)
    if not unet.config.sample_size:
        raise UserError(f"{name}: its unet/config.json has no sample_size. Write it there, as 64 for images of 512.")
    check_vocabulary(pipeline, name)
    encoders = text_parts(pipeline)[1]
    given = sum(encoder.config.hidden_size for encoder in encoders)
    wanted = unet.config.cross_attention_dim
    if isinstance(wanted, int) and wanted != given:
        raise UserError(
            f"{name}: its UNet takes text of width {wanted}, its text encoders give {given}: they are of different "
            f"models. Put those of one model together."
        )
    if unet.config.get("addition_embed_type") == "text_time":
        pooled = encoders[-1].config.projection_dim
        wanted = unet.config.projection_class_embeddings_input_dim
        if len(encoders) != 2 or wanted != 6 * unet.config.addition_time_embed_dim + pooled:
            raise UserError(
                f"{name}: its UNet is conditioned on other than SDXL's image sizes, as the SDXL refiner's is: "
                f"give the base model."
            )


def check_vocabulary(pipeline: Pipeline, name: str) -> None:
    """Refuse a tokenizer without its files, which transformers makes with next to no words.

    Raises:
        UserError: naming the part.
    """
    for part, tokenizer in zip(("tokenizer", "tokenizer_2"), text_parts(pipeline)[0], strict=False):
        words = len(tokenizer.get_vocab())
        if words < FEWEST_WORDS or tokenizer.model_max_length > MOST_TOKENS:
            raise UserError(
                f"{name}: its {part} has no vocabulary ({words} pieces of words). Get the files of the folder {part} "
                f"again (vocab.json and merges.txt, or tokenizer.json, and tokenizer_config.json)."
            )


def check_wanted(settings: Mapping[str, Any], name: str) -> None:
    """Refuse the configuration of a UNet that wants images or classes; before its weights are read, too.

    Raises:
        UserError: naming what it wants.
    """
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        value = settings.get(key)
        if value is not None and (key, value) != ("addition_embed_type", "text_time"):
            raise UserError(f"{name}: its UNet has {key}={value}, which training cannot feed. {FAMILY}")


def check_keys(part: str, missing: Sequence[str], unused: Sequence[str], name: str) -> None:
    """Refuse files that do not hold the weights of their part.

    Args:
        part: such as ``unet``.
        missing: weights of the part that its files lack.
        unused: weights in its files that the part does not have.
        name: the model, for messages.

    Raises:
        UserError: naming the part and the first such weight.
    """
    adapted = [key for key in [*unused, *missing] if ADAPTER.search(key)]
    if adapted:
        raise UserError(
            f"{name}: the files of its {part} were saved with an adapter attached and do not hold its plain weights "
            f"(as {adapted[0]}). Load it where it was made, fuse or unload the adapter, and save it again."
        )
    if missing or (unused and part == "unet"):
        what = f"lack {missing[0]}" if missing else f"hold {unused[0]}, which the part does not have"
        raise UserError(
            f"{name}: the files of its {part} are not its weights: they {what} (missing: {len(missing)}, "
            f"unused: {len(unused)}). Get the files and config.json of the {part} again from one source."
        )


def is_xl(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether an original checkpoint is of SDXL, by its names."""
    return any(name.startswith(("conditioner.embedders.", f"{UNET}label_emb.")) for name in shapes)


def check_original(shapes: Mapping[str, Sequence[int]], name: str) -> None:
    """Refuse an original checkpoint that lacks a part or whose UNet takes more than latents.

    Args:
        shapes: of the file's tensors by name.
        name: the model, for messages.

    Raises:
        UserError: naming the parts or the channels.
    """
    if not any(key.startswith(UNET) for key in shapes):
        raise UserError(f"{name} holds no UNet in the original layout. Give a whole .safetensors checkpoint.")
    parts = ORIGINAL[is_xl(shapes)]
    lacking = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in shapes)]
    if lacking:
        raise UserError(
            f"{name} holds no {', no '.join(lacking)} (names that begin with {', '.join(parts[p] for p in lacking)}). "
            f"Give a checkpoint with all parts, or a diffusers folder that joins them."
        )
    adapted = [key for key in shapes if key.startswith(UNET) and ADAPTER.search(key)]
    check_keys("unet", [], adapted, name)
    into, decoded = (shapes.get(key) for key in (f"{UNET}input_blocks.0.0.weight", FROM_LATENTS))
    latents = 4 if decoded is None else decoded[1]
    if into is not None and into[1] != latents:
        raise UserError(
            f"{name}: its UNet takes {into[1]} channels, where latents have {latents}: a model for inpainting, depth "
            f"or instructions. Give the text-to-image model that it was made from."
        )


def marked_prediction(names: Sequence[str], header: Mapping[str, str]) -> tuple[str | None, bool, str]:
    """The prediction type that a checkpoint is marked with, whether it is of zero terminal SNR, and by which mark."""
    zero = "ztsnr" in names
    if "v_pred" in names:
        return "v_prediction", zero, "key v_pred"
    said = header.get("modelspec.prediction_type", "").lower()
    if said.startswith("eps"):
        return "epsilon", zero, f"modelspec.prediction_type={said}"
    if said in ("v", "v_prediction", "v-prediction", "vpred"):
        return "v_prediction", zero, f"modelspec.prediction_type={said}"
    return None, zero, "key ztsnr"


def check_prediction(pipeline: Pipeline, names: Sequence[str], header: Mapping[str, str], layout: str | None) -> None:
    """Refuse a scheduler that contradicts the marks of a single checkpoint.

    A text that says epsilon is written by default into files of every kind: a layout that was given wins over it.

    Raises:
        UserError: naming ``model.layout``, both prediction types and the mark.
    """
    marked, zero, mark = marked_prediction(names, header)
    config = pipeline.scheduler.config
    kind = config.get("prediction_type", "epsilon")
    where = f"model.layout={layout}" if layout else "the layout that diffusers takes where model.layout is not given"
    wanted = [f'"prediction_type": "{marked}"'] if marked is not None and marked != kind else []
    if wanted and marked == "epsilon" and layout is not None:
        rank_zero_warn(
            f"model.pretrained is marked as epsilon ({mark}); {where} has {kind}, which is used.", category=Advice
        )
        wanted = []
    if zero and "rescale_betas_zero_snr" in config and not config["rescale_betas_zero_snr"]:
        wanted.append('"rescale_betas_zero_snr": true')
    if wanted:
        raise UserError(
            f"model.pretrained is marked as {marked or kind}{', zero terminal SNR' if zero else ''} ({mark}), but the "
            f"scheduler of {where} has prediction_type={kind} and rescale_betas_zero_snr="
            f"{config.get('rescale_betas_zero_snr', False)}. Give a model.layout whose scheduler/scheduler_config.json "
            f"has {', '.join(wanted)}."
        )
