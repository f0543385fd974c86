"""Train the convolutional judge on sprites: a second opinion beside CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mace_pl.errors import UserError
from mace_pl.evaluation.convolutional import KIND, JudgeNetwork
from mace_pl.evaluation.emptiness import contrast
from mace_pl.files.artifacts import write_tensors
from mace_pl.pretraining.augment import augment, sometimes
from mace_pl.pretraining.reencoding import check_autoencoder, reencode
from mace_pl.pretraining.training import TrainingModule


class JudgeTraining(TrainingModule):
    """Train a convolutional classifier of concepts and styles on augmented images; writes ``judge.safetensors``.

    The loss is the cross-entropy of the concept plus ``style_weight`` times that of the style. The threshold of
    ``empty`` is half of the lowest contrast among the images of training: that of a white sprite on white.

    Args:
        output_dir: folder that ``judge.safetensors`` is written into.
        overwrite: replace it where it exists.
        channels: channels per resolution; the side is halved before each but the first.
        style_weight: weight of naming the style.
        smoothing: label smoothing of both.
        augmented: share of the batches that are augmented.
        autoencoder: folder of an AutoencoderKL that half of the images go through before they are augmented.
        learning_rate: highest learning rate of AdamW.
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up.
        seed: of weights and augmentation.
    """

    def __init__(
        self,
        output_dir: str = "checkpoints/emoji/judge",
        overwrite: bool = False,
        channels: Sequence[int] = (24, 48, 80, 128),
        style_weight: float = 0.5,
        smoothing: float = 0.05,
        augmented: float = 0.9,
        autoencoder: str | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.02,
        warmup_steps: int = 100,
        seed: int = 2024,
    ) -> None:
        super().__init__(output_dir, overwrite, learning_rate, weight_decay, warmup_steps, seed)
        if len(channels) < 2 or any(c < 1 for c in channels):
            raise UserError(f"channels={list(channels)} must be two or more numbers of 1 or more.")
        for name, share in (("augmented", augmented), ("smoothing", smoothing)):
            if not 0 <= share <= 1:
                raise UserError(f"{name}={share} must lie between 0 and 1.")
        self.channels = list(channels)
        self.style_weight = style_weight
        self.smoothing = smoothing
        self.augmented = augmented
        self.autoencoder = autoencoder
        self.decoded: Tensor | None = None
        self.network: Any = None
        self.concepts: list[str] = []
        self.styles: list[str] = []

    def parts(self) -> Sequence[str]:
        """One file."""
        return ["judge.safetensors"]

    def setup(self, stage: str) -> None:
        """Make the network for the concepts and styles of the data.

        Raises:
            UserError: ``autoencoder`` holds none, or the data do not tell concepts and styles.
        """
        super().setup(stage)
        check_autoencoder(self.autoencoder)
        if self.network is not None:
            return
        pool = self.pool()
        self.concepts, self.styles = sorted(set(pool.concepts)), sorted(set(pool.styles))
        if not self.concepts or not self.styles:
            raise UserError("data: the judge needs images whose concepts and styles are known, as of SpriteImages.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = JudgeNetwork(self.channels, len(self.concepts), len(self.styles))

    def on_fit_start(self) -> None:
        """Choose the faster memory layout, and send every image through the autoencoder once."""
        self.network.to(memory_format=torch.channels_last)
        if self.autoencoder is not None:
            self.decoded = reencode(self.pool().images, self.autoencoder, self, self.seed)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return self.optimize(self.network.parameters())

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Name concept and style of N images [N, 3, H, W]."""
        generator = self.generator()
        images = batch["pixel_values"]
        if self.decoded is not None:
            decoded = self.decoded[batch["index"].cpu()].to(images) / 127.5 - 1
            images = sometimes(decoded, images, 0.5, generator)
        if float(torch.rand(1, generator=generator)) < self.augmented:
            images = augment(images, generator)
        concepts, styles = self.network(images.contiguous(memory_format=torch.channels_last))
        concept = torch.tensor([self.concepts.index(name) for name in batch["concept"]], device=self.device)
        style = torch.tensor([self.styles.index(name) for name in batch["style"]], device=self.device)
        named = F.cross_entropy(concepts, concept, label_smoothing=self.smoothing)
        styled = F.cross_entropy(styles, style, label_smoothing=self.smoothing)
        logged = {"train/concept": named, "train/style": styled}
        logged["train/accuracy"] = (concepts.argmax(-1) == concept).float().mean()
        logged["train/style_accuracy"] = (styles.argmax(-1) == style).float().mean()
        self.log_dict(logged, prog_bar=True)
        loss: Tensor = named + self.style_weight * styled
        return loss

    @torch.no_grad()
    def on_fit_end(self) -> None:
        """Write the weights in float16 with the names, and the contrast below which an image is empty."""
        if not self.trainer.is_global_zero:
            return
        images = self.pool().images
        faintest = min(float(contrast(part.float() / 127.5 - 1).min()) for part in images.split(256))
        said = {
            "concepts": self.concepts,
            "styles": self.styles,
            "channels": self.channels,
            "resolution": images.shape[-1],
            "threshold": faintest / 2,
        }
        floats = {name: t.half() for name, t in self.network.state_dict().items() if t.is_floating_point()}
        bad = [name for name, t in floats.items() if not bool(torch.isfinite(t).all())]
        if bad:
            raise UserError(f"judge: {bad[0]} is not finite: training diverged. Lower model.learning_rate.")
        write_tensors(self.folder / "judge.safetensors", floats, KIND, said)
