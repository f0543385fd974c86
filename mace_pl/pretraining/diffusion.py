"""Train the UNet of a small latent diffusion model from nothing, or fine-tune the UNet of a given pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextModel, CLIPTokenizer

from mace_pl.errors import UserError
from mace_pl.export.readable import make_readable
from mace_pl.files.artifacts import write_json, written_aside
from mace_pl.files.paths import resolve
from mace_pl.pretraining.card import CARD, parts_of, write_card
from mace_pl.pretraining.training import TrainingModule, save_half

GIVEN = ("vae", "text_encoder", "tokenizer")  # what a new UNet is trained with
NEW = ("unet", "scheduler", "model_index.json")  # what is then written beside it


class DiffusionTraining(TrainingModule):
    """Train a UNet with E||eps - eps_theta||^2 on latents; its moving average is what is written at the end.

    Without ``pretrained`` a new UNet is trained with the vae, text_encoder and tokenizer that ``output_dir`` holds, and
    unet, scheduler and model_index.json are written beside them. With ``pretrained`` that pipeline's UNet is trained
    further, and the whole pipeline is written to ``output_dir``.

    Args:
        output_dir: folder of the pipeline.
        overwrite: replace the parts where they exist.
        pretrained: folder of a Stable Diffusion pipeline to fine-tune; a new UNet when left out.
        start: folder of a UNet whose weights a new UNet starts from, wherever names and shapes are the same.
        channels: channels of a new UNet per resolution; the first has no attention.
        heads: attention heads of a new UNet.
        norm_groups: groups of a new UNet's normalisation; must divide every entry of ``channels``.
        prediction_type: what a new UNet predicts; a given pipeline's scheduler says it itself.
        snr_gamma: bound of the min-SNR weighting (Hang et al. 2023, which uses 5); no weighting when null.
        empty_captions: share of captions that are replaced by the empty one, for classifier-free guidance.
        ema_decay: decay of the moving average of the weights; after n steps at most (1 + n) / (10 + n).
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
        start: str | None = None,
        channels: Sequence[int] = (64, 128, 192),
        heads: int = 4,
        norm_groups: int = 16,
        prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
        snr_gamma: float | None = 5.0,
        empty_captions: float = 0.1,
        ema_decay: float = 0.998,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        seed: int = 2024,
    ) -> None:
        super().__init__(output_dir, overwrite, learning_rate, weight_decay, warmup_steps, seed)
        if len(channels) < 2 or any(c < 1 or c % norm_groups for c in channels):
            raise UserError(f"channels={list(channels)} must be two or more multiples of norm_groups={norm_groups}.")
        for name, share in (("empty_captions", empty_captions), ("ema_decay", ema_decay)):
            if not 0 <= share <= 1:
                raise UserError(f"{name}={share} must lie between 0 and 1.")
        if snr_gamma is not None and not snr_gamma > 0:
            raise UserError(f"snr_gamma={snr_gamma} must be above 0, or null for no weighting.")
        if pretrained is not None and start is not None:
            raise UserError(f"start={start} is for a new UNet, and pretrained={pretrained} gives one. Set one of them.")
        self.pretrained, self.start = pretrained, start
        self.source = Path(output_dir) if pretrained is None else resolve(pretrained)
        self.channels, self.heads, self.norm_groups = tuple(channels), heads, norm_groups
        self.prediction_type = prediction_type
        self.snr_gamma = snr_gamma
        self.empty_captions = empty_captions
        self.ema_decay = ema_decay
        self.unet: Any = None
        self.average: Any = None
        self.scheduler: Any = new_scheduler(prediction_type)
        self.latents = self.texts = self.empty = self.text_of = torch.empty(0)

    def parts(self) -> Sequence[str]:
        """The UNet's parts, or everything of the given pipeline."""
        return NEW if self.pretrained is None else sorted([CARD, *(p.name for p in parts_of(self.source))])

    def setup(self, stage: str) -> None:
        """Check the folders, then make or read UNet and scheduler.

        Raises:
            UserError: parts are missing, or the output would replace its own input.
        """
        needed = GIVEN if self.pretrained is None else (*GIVEN, *NEW)
        missing = [part for part in needed if not (self.source / part).exists()]
        if missing and self.pretrained is None:
            raise UserError(f"output_dir={self.folder} lacks {missing}. Train the autoencoder and CLIP into it first.")
        if missing:
            raise UserError(f"pretrained={self.pretrained} lacks {missing} (looked at {self.source}). Give a pipeline.")
        if self.pretrained is not None:
            name = json.loads((self.source / "model_index.json").read_text("utf-8")).get("_class_name")
            if name != "StableDiffusionPipeline":
                raise UserError(f"pretrained={self.pretrained} is a {name}. Give a StableDiffusionPipeline.")
        if self.pretrained is not None and self.folder.resolve() == self.source.resolve():
            raise UserError(f"output_dir={self.folder} is the pretrained folder itself. Choose another output_dir.")
        super().setup(stage)
        if self.unet is None:
            self.unet, self.scheduler = self.new_parts() if self.pretrained is None else self.given_parts()
            self.average = AveragedModel(self.unet, multi_avg_fn=self.follow)
            self.average.requires_grad_(False)

    def new_parts(self) -> tuple[Any, Any]:
        """A seeded UNet that fits the given autoencoder and text encoder, and Stable Diffusion's noise schedule."""
        vae = AutoencoderKL.load_config(str(self.source / "vae"))
        text = json.loads((self.source / "text_encoder" / "config.json").read_text("utf-8"))
        plain = len(self.channels) - 1  # attention at every resolution but the first, where it would cost the most
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            unet = UNet2DConditionModel(
                sample_size=vae["sample_size"] // 2 ** (len(vae["block_out_channels"]) - 1),
                in_channels=vae["latent_channels"],
                out_channels=vae["latent_channels"],
                block_out_channels=self.channels,
                down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * plain,
                up_block_types=("CrossAttnUpBlock2D",) * plain + ("UpBlock2D",),
                layers_per_block=1,
                norm_num_groups=self.norm_groups,
                cross_attention_dim=text["hidden_size"],
                attention_head_dim=self.heads,
            )
        if self.start is not None:
            take_over(unet, self.start)
        return unet, new_scheduler(self.prediction_type)

    def given_parts(self) -> tuple[Any, Any]:
        """UNet and scheduler of the given pipeline; DDIM reads the configuration of the other schedulers too."""
        unet: Any = UNet2DConditionModel.from_pretrained(self.source, subfolder="unet", torch_dtype=torch.float32)
        scheduler: Any = DDIMScheduler.from_pretrained(self.source, subfolder="scheduler")
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(f"pretrained={self.pretrained} predicts {scheduler.config.prediction_type}: not supported.")
        return unet.train(), scheduler

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Encode every image and every distinct caption once."""
        if self.device.type == "cpu":  # the fused kernel's backward pass is slow for small heads
            self.unet.set_attn_processor(AttnProcessor())
        pool = self.pool()
        vae: Any = AutoencoderKL.from_pretrained(self.source, subfolder="vae", torch_dtype=torch.float32)
        vae = vae.to(self.device).eval()
        images = (p.to(self.device).float() / 127.5 - 1 for p in pool.images.split(32))
        self.latents = torch.cat([vae.encode(p).latent_dist.mean.cpu() for p in images]) * vae.config.scaling_factor
        places = {caption: position for position, caption in enumerate(dict.fromkeys(["", *pool.captions]))}
        self.text_of = torch.tensor([places[caption] for caption in pool.captions])
        self.texts = self.encode_texts(list(places))

    def encode_texts(self, captions: list[str]) -> Tensor:
        """Hidden states [N, T, D] of the pipeline's text encoder, padded to its full length as the pipeline pads."""
        tokenizer = CLIPTokenizer.from_pretrained(self.source / "tokenizer")
        encoder: Any = CLIPTextModel.from_pretrained(self.source / "text_encoder", dtype=torch.float32)
        encoder = encoder.to(self.device).eval()
        ids = tokenizer(
            captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        return torch.cat([encoder(part.to(self.device))[0].cpu() for part in ids.split(64)])

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return self.optimize(self.unet.parameters())

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Weighted squared error of the predicted noise (or velocity) at a random timestep per image."""
        index = batch["index"].cpu()
        generator = self.generator()
        clean = self.latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (len(index),), generator=generator)
        dropped = torch.rand(len(index), generator=generator) < self.empty_captions
        text = self.texts[self.text_of[index].masked_fill(dropped, 0)]  # caption 0 is the empty one
        noisy = self.scheduler.add_noise(clean, noise, steps)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = (self.scheduler.get_velocity(clean, noise, steps) if velocity else noise).to(self.device)
        predicted = self.unet(noisy.to(self.device), steps.to(self.device), text.to(self.device)).sample
        errors = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        self.log("train/mse", errors.detach().mean(), prog_bar=True)
        loss: Tensor = (errors * self.weights(steps).to(errors)).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def weights(self, steps: Tensor) -> Tensor:
        """min(SNR, gamma) / SNR for noise, / (SNR + 1) for velocity, at timesteps [N]; 1 without gamma."""
        if self.snr_gamma is None:
            return torch.ones(len(steps))
        alphas: Tensor = self.scheduler.alphas_cumprod[steps]
        snr = alphas / (1 - alphas)
        extra = 1 if self.scheduler.config.prediction_type == "v_prediction" else 0
        return snr.clamp(max=self.snr_gamma) / (snr + extra)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then follow with the average: here, and not at the batch's end, a checkpoint of the step has both."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.average.update_parameters(self.unet)

    @torch.no_grad()
    def follow(self, averages: Any, weights: Any, count: Any) -> None:
        """Move the averages towards the weights; early steps move them more, or a short run would keep its start."""
        steps = int(count)
        decay = min(self.ema_decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def on_fit_end(self) -> None:
        """Write the averaged UNet and what makes it a pipeline."""
        if not self.trainer.is_global_zero:
            return
        unet = self.average.module
        unet.set_default_attn_processor()
        save_half(unet, self.folder / "unet")
        if self.pretrained is None:
            with written_aside(self.folder / "scheduler") as aside:
                self.scheduler.save_pretrained(aside)
            write_json(self.folder / "model_index.json", model_index())
            return
        write_card(self.folder, self.source.name, self.trainer.global_step, len(self.pool().captions))
        for part in parts_of(self.source):
            if part.name != "unet":
                with written_aside(self.folder / part.name) as aside:
                    (shutil.copytree if part.is_dir() else shutil.copyfile)(part, aside)
        make_readable(self.folder)


def new_scheduler(prediction_type: str) -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def take_over(unet: Any, folder: str) -> None:
    """Give ``unet`` the weights of the UNet in ``folder`` that have the same names and shapes as its own.

    Raises:
        UserError: no UNet is there, or none of its weights fits.
    """
    if not (resolve(folder) / "config.json").is_file():
        raise UserError(f"start={folder} has no config.json. Give the folder of a UNet2DConditionModel.")
    given = UNet2DConditionModel.from_pretrained(resolve(folder), torch_dtype=torch.float32).state_dict()
    weights = unet.state_dict()
    fitting = {name: t for name, t in given.items() if name in weights and t.shape == weights[name].shape}
    if not fitting:
        raise UserError(f"start={folder}: no weight has the shape that the new UNet needs. Leave start out.")
    unet.load_state_dict(weights | fitting)


def model_index() -> dict[str, Any]:
    """The parts of a StableDiffusionPipeline without safety checker."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
