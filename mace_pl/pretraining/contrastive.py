"""Train a small CLIP: the text encoder that the UNet is conditioned on, and the scorer of its images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from mace_pl.errors import UserError
from mace_pl.export.readable import make_readable
from mace_pl.files.artifacts import written_aside
from mace_pl.files.paths import resolve
from mace_pl.pretraining.augment import augment, sometimes
from mace_pl.pretraining.reencoding import check_autoencoder, reencode
from mace_pl.pretraining.tokenizer import save_tokenizer, train_tokenizer
from mace_pl.pretraining.training import TrainingModule, save_text

CONCEPT, STYLE = "a photo of the {}", "an image in the style of {}"  # texts of what is named beside the caption
IMAGE_SIDE = ("vision_model.", "visual_projection.")  # where the weights of a CLIPModel's image side are
MAX_LOG_SCALE = 4.6  # CLIP clips the temperature at 100


class ContrastiveTraining(TrainingModule):
    """Train a CLIPModel on augmented images; writes ``clip/``, ``text_encoder/`` and ``tokenizer/``.

    The loss is CLIP's, where equal captions are right for each other's images, plus ``concept_weight`` times the
    cross-entropy of naming what an image shows among the concepts of the batch, where the data tell it.

    Args:
        output_dir: folder of the pipeline.
        overwrite: replace the parts where they exist.
        pretrained: folder of a CLIPModel with its tokenizer to train further; a new one when left out.
        freeze_text: train the image tower alone; ``text_encoder`` and ``tokenizer`` are then not written.
        new_image_tower: with ``freeze_text``, a new image tower in place of the pretrained one, of ``resolution``,
            ``patch_size``, ``width``, ``layers`` and ``heads``.
        vocab_size: most entries of a new tokenizer.
        resolution: side of the images of a new model.
        patch_size: side of its patches.
        width: width of its towers and of the shared space.
        layers: layers of each tower.
        heads: attention heads of each tower.
        text_length: tokens that captions are cut to while training; the encoder itself takes 77.
        concept_weight: weight of naming the concept.
        style_weight: weight of naming the style, among those of the batch.
        augmented: share of the batches that are augmented; without it the scores of generated images are brittle.
        autoencoder: folder of an AutoencoderKL that half of the images go through before they are augmented, since
            the images that will be scored come out of one.
        learning_rate: highest learning rate of AdamW.
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up.
        seed: of weights and augmentation.
    """

    def __init__(
        self,
        output_dir: str = "checkpoints/emoji",
        overwrite: bool = False,
        pretrained: str | None = None,
        freeze_text: bool = False,
        new_image_tower: bool = False,
        vocab_size: int = 1024,
        resolution: int = 64,
        patch_size: int = 16,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        text_length: int = 32,
        concept_weight: float = 0.5,
        style_weight: float = 0.0,
        augmented: float = 0.9,
        autoencoder: str | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 50,
        seed: int = 2024,
    ) -> None:
        super().__init__(output_dir, overwrite, learning_rate, weight_decay, warmup_steps, seed)
        if freeze_text and pretrained is None:
            raise UserError("freeze_text=True needs trained text weights. Set pretrained to a folder of a CLIPModel.")
        if new_image_tower and not freeze_text:
            raise UserError("new_image_tower=True is for a text side that stays: set freeze_text to True as well.")
        if resolution % patch_size:
            raise UserError(f"patch_size={patch_size} must divide resolution={resolution}.")
        if not 0 <= augmented <= 1:
            raise UserError(f"augmented={augmented} must lie between 0 and 1.")
        self.pretrained = pretrained
        self.freeze_text = freeze_text
        self.new_image_tower = new_image_tower
        self.vocab_size = vocab_size
        self.resolution, self.patch_size = resolution, patch_size
        self.width, self.layers, self.heads = width, layers, heads
        self.text_length = text_length
        self.concept_weight = concept_weight
        self.style_weight = style_weight
        self.augmented = augmented
        self.autoencoder = autoencoder
        self.decoded: Tensor | None = None
        self.clip: Any = None
        self.tokenizer: Any = None
        self.known: dict[str, Tensor] = {}

    def parts(self) -> Sequence[str]:
        """``clip`` alone where the text side stays as it is."""
        return ["clip"] if self.freeze_text else ["clip", "text_encoder", "tokenizer"]

    def setup(self, stage: str) -> None:
        """Read model and tokenizer, or make them: the tokenizer of the data's captions.

        Raises:
            UserError: ``pretrained`` holds no CLIPModel, or ``autoencoder`` no AutoencoderKL.
        """
        super().setup(stage)
        check_autoencoder(self.autoencoder)
        if self.clip is not None:
            return
        if self.pretrained is None:
            self.tokenizer = train_tokenizer(self.pool().captions, self.vocab_size)
            self.clip = self.seeded(self.new_clip_config())
        else:
            folder = resolve(self.pretrained)
            if not (folder / "config.json").is_file():
                raise UserError(f"pretrained={self.pretrained} has no config.json. Give the folder of a CLIPModel.")
            self.tokenizer = CLIPTokenizer.from_pretrained(folder)
            self.clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
            if self.new_image_tower:
                self.clip = self.with_new_image_tower(self.clip)
        for part in (self.clip.text_model, self.clip.text_projection):
            part.requires_grad_(not self.freeze_text)
        self.clip.set_attn_implementation("eager")  # 0.54 of the time of sdpa (step of 65 tokens, bfloat16, two cores)
        self.clip.train()

    def new_clip_config(self) -> CLIPConfig:
        """Of a CLIPModel whose towers differ in nothing but what they read."""
        text = {
            "vocab_size": len(self.tokenizer),
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        text |= self.tower(self.width)
        return CLIPConfig(text_config=text, vision_config=self.image_tower(self.width), projection_dim=self.width)

    def tower(self, shared: int) -> dict[str, Any]:
        """The settings of a tower that ends in a space of ``shared`` dimensions."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "projection_dim": shared,
        }

    def image_tower(self, shared: int) -> dict[str, Any]:
        """The settings of an image tower."""
        return self.tower(shared) | {"image_size": self.resolution, "patch_size": self.patch_size}

    def seeded(self, config: CLIPConfig) -> CLIPModel:
        """A CLIPModel with the weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return CLIPModel(config)

    def with_new_image_tower(self, old: CLIPModel) -> CLIPModel:
        """A CLIPModel with the text side and the temperature of ``old``, and a new image tower."""
        shared = old.config.projection_dim
        text, vision = old.config.text_config.to_dict(), self.image_tower(shared)
        new = self.seeded(CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared))
        kept = {name: t for name, t in old.state_dict().items() if not name.startswith(IMAGE_SIDE)}
        missing, unexpected = new.load_state_dict(kept, strict=False)
        assert not unexpected and all(name.startswith(IMAGE_SIDE) for name in missing)
        return new

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return self.optimize(p for p in self.clip.parameters() if p.requires_grad)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Contrast N images [N, 3, H, W] with their captions and with the names of what they show."""
        generator = self.generator()
        images = batch["pixel_values"]
        if self.decoded is not None:
            decoded = self.decoded[batch["index"].cpu()].to(images) / 127.5 - 1
            images = sometimes(decoded, images, 0.5, generator)
        if float(torch.rand(1, generator=generator)) < self.augmented:
            images = augment(images, generator)
        seen = self.clip.vision_model(pixel_values=images).pooler_output
        embedded = F.normalize(self.clip.visual_projection(seen), dim=-1)
        scale = self.clip.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
        captions, places = distinct(batch["caption"])
        contrast = contrastive_loss(scale * embedded @ self.encode_texts(captions).T, places.to(self.device))
        self.log("train/contrast", contrast, prog_bar=True)
        loss: Tensor = contrast
        if batch["concept"] and self.concept_weight > 0:
            loss = loss + self.concept_weight * self.naming("accuracy", CONCEPT, scale * embedded, batch["concept"])
        if batch["style"] and self.style_weight > 0:
            loss = loss + self.style_weight * self.naming("style_accuracy", STYLE, scale * embedded, batch["style"])
        return loss

    def naming(self, logged: str, template: str, embedded: Tensor, shown: Sequence[str]) -> Tensor:
        """Cross-entropy of naming what N embedded images [N, D], times the temperature, show, among all shown."""
        names, places = distinct(shown)
        logits = embedded @ self.encode_texts([template.format(name) for name in names]).T
        places = places.to(self.device)
        self.log(f"train/{logged}", (logits.argmax(dim=-1) == places).float().mean(), prog_bar=True)
        return F.cross_entropy(logits, places)

    def on_fit_start(self) -> None:
        """Send every image through the autoencoder once."""
        if self.autoencoder is not None:
            self.decoded = reencode(self.pool().images, self.autoencoder, self, self.seed)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors [N, D] of texts; a frozen encoder reads each text once."""
        if not self.freeze_text:
            return self.encode(texts)
        new = [text for text in texts if text not in self.known]
        if new:
            self.known.update(zip(new, self.encode(new), strict=True))
        return torch.stack([self.known[text] for text in texts])

    def encode(self, texts: list[str]) -> Tensor:
        """Unit vectors [N, D]; padded to the longest text alone, which is exact for a causal encoder."""
        ids = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self.text_length, return_tensors="pt"
        ).input_ids.to(self.device)
        return F.normalize(self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output), dim=-1)

    def on_fit_end(self) -> None:
        """Write the parts in float16."""
        if not self.trainer.is_global_zero:
            return
        clip = copy.deepcopy(self.clip).to("cpu", torch.float16)
        with written_aside(self.folder / "clip") as aside:
            save_clip(clip, self.tokenizer, aside)
        if not self.freeze_text:
            with written_aside(self.folder / "text_encoder") as aside:
                save_text_encoder(clip, aside)
            with written_aside(self.folder / "tokenizer") as aside:
                save_tokenizer(self.tokenizer, aside)


def distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct texts, and the place of each text among them [N]."""
    places = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    return list(places), torch.tensor([places[text] for text in texts])


def contrastive_loss(logits: Tensor, places: Tensor) -> Tensor:
    """CLIP's loss for N images x C distinct captions, of which ``places`` [N] are right; a caption may have many."""
    right = places[:, None] == torch.arange(logits.shape[1], device=logits.device)
    to_image = -(F.log_softmax(logits, dim=0) * right / right.sum(dim=0)).sum() / logits.shape[1]
    return (F.cross_entropy(logits, places) + to_image) / 2


def save_clip(clip: Any, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The CLIPModel with its tokenizer, and how images go in: [-1, 1]."""
    clip.save_pretrained(folder)
    make_readable(folder)
    save_tokenizer(tokenizer, folder)
    side = clip.config.vision_config.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    save_text(folder / "preprocessor_config.json", processor)


def save_text_encoder(clip: Any, folder: Path) -> None:
    """CLIP's text tower as a CLIPTextModel whose weights have the names that every transformers version reads.

    Loading strictly notices a version that names the weights in yet another way; without it nothing would be loaded and
    nothing said.
    """
    text: Any = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict(), strict=True)
    text.half().save_pretrained(folder)
    make_readable(folder)
