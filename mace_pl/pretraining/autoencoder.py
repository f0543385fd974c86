"""Train the autoencoder of a small latent diffusion model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve
from mace_pl.pretraining.training import TrainingModule, save_half


class AutoencoderTraining(TrainingModule):
    """Train an AutoencoderKL on images with L1 + 0.5 MSE + 1e-4 KL; writes ``vae/`` with its scaling factor.

    ``edge_weight`` adds the L1 of the slopes, which a soft reconstruction has wrong at every border of colours.

    Args:
        output_dir: folder of the pipeline; ``vae`` is written into it.
        overwrite: replace ``vae`` where it exists.
        pretrained: folder of an AutoencoderKL to train further; a new one of the sizes below when left out.
        decoder_only: leave the encoder and the scaling factor as they are, so that latents, and what was trained on
            them, stay valid.
        channels: channels per resolution; each entry after the first halves the side once.
        latent_channels: channels of the latents.
        norm_groups: groups of the normalisation; must divide every entry of ``channels``.
        resolution: side of the images.
        kl_weight: weight of the KL divergence, which is taken per latent value.
        edge_weight: weight of the L1 of the differences between neighbouring pixels, at full and half resolution.
        learning_rate: highest learning rate of AdamW.
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up.
        seed: of weights and noise.
    """

    def __init__(
        self,
        output_dir: str = "checkpoints/emoji",
        overwrite: bool = False,
        pretrained: str | None = None,
        decoder_only: bool = False,
        channels: Sequence[int] = (32, 64, 64),
        latent_channels: int = 4,
        norm_groups: int = 16,
        resolution: int = 64,
        kl_weight: float = 1e-4,
        edge_weight: float = 0.0,
        learning_rate: float = 1.5e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        seed: int = 2024,
    ) -> None:
        super().__init__(output_dir, overwrite, learning_rate, weight_decay, warmup_steps, seed)
        if not channels or any(c < 1 or c % norm_groups for c in channels):
            raise UserError(f"channels={list(channels)} must be multiples of norm_groups={norm_groups}.")
        if decoder_only and pretrained is None:
            raise UserError(
                "decoder_only=True needs a trained encoder. Set pretrained to a folder of an AutoencoderKL."
            )
        self.kl_weight, self.edge_weight, self.decoder_only = kl_weight, edge_weight, decoder_only
        if pretrained is not None:
            folder = resolve(pretrained)
            if not (folder / "config.json").is_file():
                raise UserError(f"pretrained={pretrained} has no config.json. Give the folder of an AutoencoderKL.")
            self.vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).train()
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(not decoder_only)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vae = AutoencoderKL(
                block_out_channels=tuple(channels),
                down_block_types=("DownEncoderBlock2D",) * len(channels),
                up_block_types=("UpDecoderBlock2D",) * len(channels),
                layers_per_block=1,
                latent_channels=latent_channels,
                norm_num_groups=norm_groups,
                sample_size=resolution,
            )

    def parts(self) -> Sequence[str]:
        """Only ``vae``."""
        return ["vae"]

    def on_fit_start(self) -> None:
        """Choose the faster memory layout, and on a CPU the attention whose backward pass is faster."""
        self.vae.to(memory_format=torch.channels_last)
        if self.device.type == "cpu":
            self.vae.set_attn_processor(AttnProcessor())

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return self.optimize(p for p in self.vae.parameters() if p.requires_grad)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """L1 + 0.5 MSE of images [N, 3, H, W] and reconstructions, + ``kl_weight`` x KL per latent value."""
        images = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=self.generator()).to(images.device)
        made = self.vae.decode(posterior.mean + posterior.std * noise).sample
        l1, mse = F.l1_loss(made, images), F.mse_loss(made, images)
        kl = posterior.kl().mean() / noise[0].numel()
        self.log_dict({"train/l1": l1, "train/mse": mse, "train/kl": kl}, prog_bar=True)
        loss: Tensor = l1 + 0.5 * mse + self.kl_weight * kl
        if self.edge_weight > 0:
            edges = edge_error(made, images)
            self.log("train/edges", edges, prog_bar=True)
            loss = loss + self.edge_weight * edges
        return loss

    @torch.no_grad()
    def on_fit_end(self) -> None:
        """Write ``vae`` with scaling_factor = 1 / standard deviation of the latents of up to 2,000 images."""
        if not self.trainer.is_global_zero:
            return
        if self.decoder_only:
            save_half(self.vae, self.folder / "vae")
            return
        sums, count = torch.zeros(2, dtype=torch.float64), 0
        for images in self.pool().images[:2000].split(64):
            posterior = self.vae.encode(images.to(self.device).float() / 127.5 - 1).latent_dist
            latents = (posterior.mean + posterior.std * torch.randn_like(posterior.std)).double().cpu()
            sums += torch.stack([latents.sum(), latents.square().sum()])
            count += latents.numel()
        mean, square = (sums / count).tolist()
        self.vae.register_to_config(scaling_factor=(square - mean**2) ** -0.5)
        save_half(self.vae, self.folder / "vae")


def edge_error(made: Tensor, images: Tensor) -> Tensor:
    """L1 of the differences between neighbouring pixels of [N, 3, H, W], mean of full and half resolution."""
    error = made - images
    total = error.new_zeros(())
    for scaled in (error, F.avg_pool2d(error, 2)):
        down, across = scaled[..., 1:, :] - scaled[..., :-1, :], scaled[..., 1:] - scaled[..., :-1]
        total = total + (down.abs().mean() + across.abs().mean()) / 4
    return total
