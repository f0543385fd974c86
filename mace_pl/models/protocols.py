"""What is asked of a pipeline of diffusers and of its parts, whose classes have partial annotations."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Tokenizer(Protocol):
    """A CLIPTokenizer of transformers.

    Attributes:
        model_max_length: tokens of a padded prompt, start and end among them.
        pad_token: what fills a prompt up.
        pad_token_id: its number.
    """

    model_max_length: int
    pad_token: str
    pad_token_id: int

    def __call__(self, text: str | list[str], **settings: Any) -> Any:
        """Token numbers of a prompt or of several, as ``input_ids``."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The pieces of words that numbers stand for."""

    def get_vocab(self) -> dict[str, int]:
        """The number of each piece."""


class Network(Protocol):
    """A part of a pipeline that has weights and a configuration: UNet, VAE or text encoder."""

    @property
    def config(self) -> Any: ...  # noqa: D102

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name."""


class Pipeline(Protocol):
    """A text-to-image pipeline of diffusers with a UNet, such as StableDiffusionPipeline.

    A second tokenizer and text encoder (SDXL) are asked for by name, since others lack them.

    Attributes:
        unet: the UNet2DConditionModel.
        vae: the AutoencoderKL or AutoencoderTiny.
        tokenizer: the first one.
        text_encoder: the first one.
        scheduler: the noise scheduler.
        image_processor: what turns images into pixels in [−1, 1] and back.
        vae_scale_factor: pixels to a latent, along a side.
        config: names of the parts' classes, and settings.
        components: its parts by name.
    """

    unet: Any
    vae: Any
    tokenizer: Tokenizer
    text_encoder: Any
    scheduler: Any
    image_processor: Any
    vae_scale_factor: int

    @property
    def config(self) -> Any: ...  # noqa: D102

    @property
    def components(self) -> dict[str, Any]: ...  # noqa: D102

    def __call__(self, prompt: list[str], **settings: Any) -> Any:
        """Generate images of prompts."""

    def to(self, device: Any) -> Any:
        """Move all parts."""

    def encode_prompt(self, prompt: Any, **settings: Any) -> tuple[Any, ...]:
        """Text embeddings, of the guided against, pooled ones."""

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Switch the bar of denoising steps."""

    def save_pretrained(self, folder: Any, **settings: Any) -> None:
        """Write the folder."""

    def get_guidance_scale_embedding(self, scales: Any, embedding_dim: int) -> Any:
        """What a distilled UNet is told of the guidance."""
