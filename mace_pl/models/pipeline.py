"""Load a pipeline of the Stable Diffusion family with clear errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from PIL import Image
from torch import Tensor

from mace_pl.errors import UserError, one_line
from mace_pl.files.paths import resolve
from mace_pl.models.base_checks import check_base
from mace_pl.models.loading import LEFT_OUT, UNREADABLE, load_file, load_folder
from mace_pl.models.protocols import Network, Pipeline
from mace_pl.models.source import Source
from mace_pl.models.text_encoding import encoder_fingerprint, text_parts

#: where a model is: the arguments of :func:`load_pipeline`, under ``model`` in a run's configuration
BASE_SETTINGS = ("pretrained", "revision", "variant", "layout")
LARGE = 512  # pixels: images from this size on are decoded one by one, for a decoder wants gigabytes for each
UNSEEDED = {"DPMSolverSDEScheduler"}  # its noise comes from no image's generator: an image would depend on its batch
HINT = (
    "Give the folder of a Stable Diffusion pipeline (with model_index.json), a hub id, or a .safetensors checkpoint in "
    "the original layout."
)


def load_base(model: Mapping[str, Any]) -> tuple[Any, Source]:
    """:func:`load_with_source` with the settings that the ``model`` part of a run's configuration holds."""
    return load_with_source(**{name: model[name] for name in BASE_SETTINGS if model.get(name) is not None})


def load_pipeline(
    pretrained: str, revision: str | None = None, variant: str | None = None, layout: str | None = None
) -> Any:
    """:func:`load_with_source` for those who only generate with the pipeline."""
    return load_with_source(pretrained, revision, variant, layout)[0]


def load_with_source(
    pretrained: str, revision: str | None = None, variant: str | None = None, layout: str | None = None
) -> tuple[Any, Source]:
    """The whole pipeline in float32, frozen, without its safety checker, and the files that it was read from.

    Args:
        pretrained: a diffusers folder, a hub id, or a ``.safetensors`` checkpoint in the original layout.
        revision: branch, tag or commit of a hub id.
        variant: which files of a folder or hub id are read, as in ``fp16``.
        layout: diffusers folder or hub id with the configurations, tokenizer and scheduler of a checkpoint; what
            diffusers takes for its family when None.

    Raises:
        UserError: no such folder, id or file, no pipeline in it, a setting that does not go with it, or a UNet that
            has no cross-attention or wants other conditions than text.
    """
    source = resolve(pretrained)
    if revision is not None and source.exists():
        raise UserError(f"model.revision={revision} is for hub ids, model.pretrained={pretrained} is a path. Drop it.")
    try:
        if source.is_file():
            pipeline, files = _from_file(source, variant, layout)
        else:
            folder = _folder(pretrained, source, revision, variant, layout)
            pipeline, files = load_folder(folder, pretrained, variant)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"model.pretrained={pretrained} cannot be loaded: {one_line(error)} {HINT}") from error
    if getattr(pipeline, "unet", None) is None:
        raise UserError(f"model.pretrained={pretrained} has no UNet. {HINT}")
    check_base(pipeline, pretrained)
    for part in (pipeline.unet, pipeline.vae, *text_parts(pipeline)[1]):
        part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    if max(image_size(pipeline)) >= LARGE:
        pipeline.vae.enable_slicing()
    return pipeline, files


def _folder(pretrained: str, source: Path, revision: str | None, variant: str | None, layout: str | None) -> Path:
    """The folder, of a hub id the one in the cache."""
    if layout is not None:
        raise UserError(f"model.layout={layout} is for single checkpoints; a folder or hub id has its own. Drop it.")
    return local_folder(pretrained, source, revision, variant, LEFT_OUT)


def local_folder(
    pretrained: str, source: Path, revision: str | None, variant: str | None, without: Sequence[str]
) -> Path:
    """A folder as it is; of a hub id the one in the cache, into which what is missing is downloaded.

    Args:
        pretrained: what the user named.
        source: where that would be on disk.
        revision: branch, tag or commit of a hub id.
        variant: which files are downloaded.
        without: parts that are not downloaded.

    Raises:
        UserError: no such folder or hub id.
    """
    source_id = place_of(pretrained, source)
    if source.exists():
        return source
    try:
        return Path(DiffusionPipeline.download(source_id, revision=revision, variant=variant, **dict.fromkeys(without)))
    except UNREADABLE as error:
        raise UserError(f"model.pretrained={pretrained} {_not_had(error)}") from error


def _not_had(error: BaseException) -> str:
    """Why a hub id could not be downloaded, and what to do."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, RepositoryNotFoundError):
        return "is neither a path nor a model of the hub. Check the id; log in with hf auth login where it is gated."
    if isinstance(cause, HfHubHTTPError):
        return f"cannot be had from the hub, which says: {one_line(cause)}"
    if isinstance(error, OSError):
        return "is not on this disk and the hub is not reachable: connect, or give a folder or .safetensors file."
    return (
        f"cannot be had from the hub: {one_line(error).rstrip('.')}. Where all its files are of a variant, as fp16, "
        f"name that in model.variant."
    )


def place_of(pretrained: str, source: Path, setting: str = "model.pretrained") -> str:
    """The folder, or the hub id, that diffusers loads.

    Raises:
        UserError: a folder without pipeline, or a path that does not exist.
    """
    if source.exists() and not (source / "model_index.json").is_file():
        raise UserError(f"{setting}={pretrained} has no model_index.json. {HINT}")
    # "checkpoints/emoji" looks like a hub id; where its first part is a folder here, a path was meant
    path_meant = pretrained.count("/") != 1 or pretrained.startswith((".", "/", "~"))
    path_meant = path_meant or resolve(Path(pretrained).parent).is_dir()
    if not source.exists() and path_meant:
        raise UserError(f"{setting}={pretrained} does not exist. {HINT}")
    return str(source) if source.exists() else pretrained


def _from_file(source: Path, variant: str | None, layout: str | None) -> tuple[Any, Source]:
    """A checkpoint in the original layout, and where it is."""
    if variant is not None:
        raise UserError(f"model.variant={variant} is for folders and hub ids, model.pretrained is a file. Drop it.")
    if source.suffix != ".safetensors":
        raise UserError(f"model.pretrained={source} is no .safetensors file. Pickles (.ckpt) are never loaded. {HINT}")
    config = None if layout is None else place_of(layout, resolve(layout), "model.layout")
    pipeline = load_file(source, config, f"model.pretrained={source}")
    pipeline.unet.register_to_config(_name_or_path="")  # that of the layout is not where the weights are
    return pipeline, Source(file=source, layout=None if config is None else Path(config))


def unet_fingerprint(unet: Network) -> str:
    """SHA-256 over the weights of the UNet, or of another part, as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def autoencoder_fingerprint(pipeline: Pipeline) -> str:
    """SHA-256 over the weights of the autoencoder, as float32."""
    return unet_fingerprint(pipeline.vae)


def model_fingerprint(pipeline: Pipeline) -> str:
    """SHA-256 over all that decides which image is generated, settings apart: UNet, VAE, text encoders, tokenizers."""
    parts = (unet_fingerprint(pipeline.unet), autoencoder_fingerprint(pipeline), encoder_fingerprint(pipeline))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def set_scheduler(pipeline: Pipeline, name: str, setting: str = "model.scheduler") -> None:
    """Put another scheduler of diffusers into the pipeline, with the settings of its own.

    Raises:
        UserError: diffusers has none of this name, it does not go with the pipeline, or it lacks a package.
    """
    compatible = {
        scheduler_class.__name__: scheduler_class
        for scheduler_class in pipeline.scheduler.compatibles
        if scheduler_class.__name__ not in UNSEEDED
    }
    if name not in compatible:
        choices = ", ".join(sorted(compatible))
        raise UserError(f"{setting}={name} does not go with the model. Choose from {choices}.")
    try:
        pipeline.scheduler = compatible[name].from_config(pipeline.scheduler.config)
    except ImportError as error:
        raise UserError(f"{setting}={name} lacks a package: {str(error).strip()}") from error


@contextmanager
def scheduled(pipeline: Pipeline, name: str | None, setting: str) -> Iterator[None]:
    """The pipeline with another scheduler, then with its own again; with its own all along where ``name`` is None."""
    before = pipeline.scheduler
    try:
        if name is not None:
            set_scheduler(pipeline, name, setting)
        yield
    finally:
        pipeline.scheduler = before


def image_size(pipeline: Pipeline) -> tuple[int, int]:
    """(height, width) in pixels that the pipeline generates by default."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    factor = pipeline.vae_scale_factor
    return height * factor, width * factor


@torch.no_grad()
def image_latents(pipeline: Pipeline, images: Sequence[Image.Image]) -> Tensor:
    """[N, C, h, w]: images as the UNet sees them, without the noise of the encoder."""
    pixels = pipeline.image_processor.preprocess(list(images)).to(pipeline.vae.device, pipeline.vae.dtype)
    return vae_latents(pipeline.vae, pixels)


def vae_latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """[N, C, h, w]: pixels [N, 3, H, W] in [-1, 1] as the UNet sees them, without the noise of the encoder.

    A tiny autoencoder gives latents, others a distribution.
    """
    encoded, config = vae.encode(pixels), vae.config
    latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (latents.new_tensor(config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
        latents = (latents - mean) / std
    scaled: Tensor = latents * config.scaling_factor
    return scaled


def relative_to_project(path: Path) -> str:
    """A path as it is shown and stored: relative to the working folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
