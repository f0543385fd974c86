"""The network that is edited, behind one interface: another family of models is one more class.

Everything outside of ``mace_pl/models/`` asks a :class:`Backbone` and not the pipeline's parts, so that names of
layers, calls of the network, schedulers and positions in tuples are known in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from mace_pl.models.attention_layers import Which, projection_names
from mace_pl.models.cross_attention import attention_losses, compiled, key_values, observed
from mace_pl.models.pipeline import image_size, vae_latents
from mace_pl.models.pooled_text import pooled_layer
from mace_pl.models.protocols import Pipeline, Tokenizer
from mace_pl.models.sampling import noised
from mace_pl.models.text_encoding import encode_both, text_parts
from mace_pl.models.unet_inputs import empty_share, unet_conditions


class Backbone(Protocol):
    """What the stages of an erasure ask of a text-to-image model.

    Legend: N samples, T tokens, D text width, O output width, [C, h, w] latents, [3, H, W] pixels.

    Attributes:
        prefix: the network's name in the pipeline and in front of the names of its layers.
    """

    prefix: str

    @property
    def network(self) -> Any:
        """The denoising network."""

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """The pipeline's tokenizers, in order."""

    @property
    def encoders(self) -> list[Any]:
        """The pipeline's text encoders, in order."""

    @property
    def autoencoder(self) -> Any:
        """What turns images into latents and back."""

    @property
    def timesteps(self) -> int:
        """How many steps of noise the model was trained on."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its images in pixels."""

    def key_values(self) -> dict[str, Tensor]:
        """Copies of the cross-attention keys and values W [O, D] by layer name."""

    def pooled_layer(self) -> dict[str, Tensor]:
        """A copy of the weight [O, E + others] that reads the pooled text, by name; empty where there is none."""

    def text_layers(self) -> dict[str, Tensor]:
        """:meth:`key_values` and :meth:`pooled_layer`."""

    def attention_layers(self, which: Which) -> list[str]:
        """Names of the query, key, value and output projections of all attention, or of some of it."""

    def weights_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of the weights of layers by name."""

    def set_key_values(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights of :meth:`text_layers` or :meth:`weights_of` into the network, in its own dtype and device."""

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Text embeddings [N, T, D] as the keys and values see them, and pooled ones [N, P] where there are some."""

    def inputs(self, pooled: Tensor | None, count: int, guidance: float) -> dict[str, Any]:
        """The network's inputs beside latents, time and text, for ``count`` whole images."""

    def empty_share(self, guidance: float) -> float:
        """How much of the empty prompt's prediction is taken off a prompt's where an image is generated."""

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents under the noise of the timestep(s) ``t``."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents [N, C, h, w] of images [N, 3, H, W] in [−1, 1], without the noise of the encoder."""

    def predict(self, latents: Tensor, t: Tensor, text: Tensor, extra: Mapping[str, Any] | None = None) -> Tensor:
        """What the network predicts: ε, v, or the latents."""

    def aim(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What :meth:`predict` was trained to give for :meth:`noised`."""

    def observed(self, observe: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
        """Within the context each cross-attention shows its name and probabilities [N, H, Q, T]."""

    def attention_losses(
        self,
        latents: Tensor,
        t: Tensor,
        text: Tensor,
        layer_loss: Callable[[Tensor], Tensor],
        extra: Mapping[str, Any] | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        """Σ over cross-attentions of ``layer_loss(probabilities)``, [N]."""

    def compiled(self) -> AbstractContextManager[None]:
        """Within the context the network's blocks run compiled."""


class UNetBackbone:
    """The UNet of Stable Diffusion 1.x, 2.x and XL, and of models distilled from these.

    Args:
        pipeline: the whole pipeline.
    """

    prefix = "unet"

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @property
    def network(self) -> Any:
        """The UNet2DConditionModel."""
        return self.pipeline.unet

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """One, or two for SDXL."""
        return text_parts(self.pipeline)[0]

    @property
    def encoders(self) -> list[Any]:
        """One, or two for SDXL."""
        return text_parts(self.pipeline)[1]

    @property
    def autoencoder(self) -> Any:
        """The VAE."""
        return self.pipeline.vae

    @property
    def timesteps(self) -> int:
        """As the scheduler says."""
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its images in pixels."""
        return image_size(self.pipeline)

    def key_values(self) -> dict[str, Tensor]:
        """Copies of the ``attn2`` keys and values by layer name."""
        return key_values(self.network)

    def pooled_layer(self) -> dict[str, Tensor]:
        """``add_embedding.linear_1`` of SDXL."""
        return pooled_layer(self.network)

    def text_layers(self) -> dict[str, Tensor]:
        """Keys, values and the layer of pooled text."""
        return self.key_values() | self.pooled_layer()

    def attention_layers(self, which: Which) -> list[str]:
        """See :func:`mace_pl.models.attention_layers.projection_names`."""
        return projection_names(self.network, which)

    def weights_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Copies, by name."""
        return {name: self.network.get_submodule(name).weight.detach().clone() for name in names}

    def set_key_values(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the UNet, in its own dtype and device."""
        for name, weight in weights.items():
            self.network.get_submodule(name).weight.data.copy_(weight)

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """See :func:`mace_pl.models.text_encoding.encode_both`."""
        return encode_both(self.pipeline, prompts)

    def inputs(self, pooled: Tensor | None, count: int, guidance: float) -> dict[str, Any]:
        """See :func:`mace_pl.models.unet_inputs.unet_conditions`."""
        return unet_conditions(self.pipeline, pooled, count, guidance)

    def empty_share(self, guidance: float) -> float:
        """See :func:`mace_pl.models.unet_inputs.empty_share`."""
        return empty_share(self.pipeline, guidance)

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """√ᾱ_t x + √(1 − ᾱ_t) ε."""
        return noised(self.pipeline, latents, noise, t)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """One by one: an encoder wants gigabytes for a large image."""
        vae = self.autoencoder
        return torch.cat([vae_latents(vae, image.to(vae.device, vae.dtype)) for image in pixels.split(1)])

    def predict(self, latents: Tensor, t: Tensor, text: Tensor, extra: Mapping[str, Any] | None = None) -> Tensor:
        """[N, C, h, w]."""
        prediction: Tensor = self.network(latents, t, encoder_hidden_states=text, **(extra or {})).sample
        return prediction

    def aim(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """ε, v = √ᾱ_t ε − √(1 − ᾱ_t) x, or x itself."""
        kind = self.pipeline.scheduler.config.prediction_type
        if kind == "v_prediction":
            return noised(self.pipeline, noise, -latents, t)
        return latents if kind == "sample" else noise

    def observed(self, observe: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
        """See :func:`mace_pl.models.cross_attention.observed`."""
        return observed(self.network, observe)

    def attention_losses(
        self,
        latents: Tensor,
        t: Tensor,
        text: Tensor,
        layer_loss: Callable[[Tensor], Tensor],
        extra: Mapping[str, Any] | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        """See :func:`mace_pl.models.cross_attention.attention_losses`."""
        return attention_losses(self.network, latents, t, text, layer_loss, extra, checkpointing)

    def compiled(self) -> AbstractContextManager[None]:
        """See :func:`mace_pl.models.cross_attention.compiled`."""
        return compiled(self.network)


def backbone_of(pipeline: Pipeline) -> Backbone:
    """The backbone of a pipeline; loading has refused what has none."""
    return UNetBackbone(pipeline)
