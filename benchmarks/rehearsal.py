"""A rehearsal at full size: load, refine, a few LoRA steps, fuse, export; time and peak memory of each stage.

The shapes are those of Stable Diffusion 1.4, 2.1 or SDXL, the weights are random and nothing is downloaded. Run it as

    python benchmarks/rehearsal.py --family sd1
    python benchmarks/rehearsal.py --family sdxl --device cuda

It needs about 3 GB (sd1) or 8 GB (sdxl) of disk in the temporary folder, and the bundled model's tokenizer.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from common import resident, show_table
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from jsonargparse import auto_cli
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mace_pl.data.concepts import ConceptData
from mace_pl.export.formats import Finished
from mace_pl.files.artifacts import write_json
from mace_pl.files.paths import resolve
from mace_pl.models.base_model import BaseModel
from mace_pl.models.pipeline import image_size
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.run import Run
from mace_pl.training.trainer import MaceTrainer

TARGETS = ("ship", "bird", "automobile", "cat", "deer", "dog", "frog", "horse", "truck", "airplane")
CARDS = (8, 12, 16, 24, 40, 48, 80)  # GiB of memory that cards are sold with
SPARE = 0.5  # GiB that the driver and the context take
GIB = 1024**3
WIDTHS = {False: (768, 1280), True: (64, 128)}  # of the first and the second text encoder; toy or not

#: SD 2.1 beside SD 1.x: images of 768 pixels, OpenCLIP ViT-H/14 to its last but one layer
SD2: dict[str, Any] = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
TEXT2 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
TEXT2 |= {"projection_dim": 512, "hidden_act": "gelu"}


def unet_settings(family: str, toy: bool) -> dict[str, Any]:
    """The UNet's configuration; what is left out is diffusers' default, which is that of SD 1.x."""
    first, second = WIDTHS[toy]
    if family != "sdxl":
        small = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 8}
        settings = {"sample_size": 64, "cross_attention_dim": first, "attention_head_dim": 8}
    else:
        small = {"block_out_channels": (32, 32, 32), "norm_num_groups": 8, "attention_head_dim": 4}
        small |= {"transformer_layers_per_block": (1, 1, 2)}
        settings = {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": first + second,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + second,
        }
    return settings | small | {"sample_size": 8} if toy else settings


def vae_settings(toy: bool) -> dict[str, Any]:
    """The autoencoder's configuration, equal in both families."""
    channels = (8, 8, 8, 8) if toy else (128, 256, 512, 512)
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 8 if toy else 32,
    }


def text_settings(second: bool, toy: bool) -> dict[str, Any]:
    """The configuration of CLIP ViT-L/14's text encoder, or of OpenCLIP ViT-bigG/14's."""
    width, layers = WIDTHS[toy][second], 32 if second else 12
    return {
        "vocab_size": 4096 if toy else 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 2 if toy else layers,
        "num_attention_heads": width // 64,
        "projection_dim": width,
        "hidden_act": "gelu" if second else "quick_gelu",
    }


def build(family: str, toy: bool, tokenizer: CLIPTokenizer | None) -> dict[str, Any]:
    """The networks of a family by part, on torch's default device; their end token is the tokenizer's."""
    ends = {} if tokenizer is None else {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    unet, text = unet_settings(family, toy), text_settings(False, toy)
    if family == "sd2" and not toy:
        unet, text = unet | SD2, text | TEXT2
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**vae_settings(toy)),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text, **ends)),
    }
    if family == "sdxl":
        second = CLIPTextConfig(**text_settings(True, toy), **ends)
        parts["text_encoder_2"] = CLIPTextModelWithProjection(second)
    return parts


def save(folder: Path, family: str, toy: bool) -> None:
    """A pipeline of random weights in float16."""
    tokenizer = CLIPTokenizer.from_pretrained(resolve("checkpoints/emoji/tokenizer"))
    parts = {name: part.to(torch.float16) for name, part in build(family, toy, tokenizer).items()}
    if family == "sdxl":
        schedule = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        more = {"tokenizer_2": tokenizer, "add_watermarker": False}
        StableDiffusionXLPipeline(tokenizer=tokenizer, scheduler=schedule, **parts, **more).save_pretrained(folder)
        return
    StableDiffusionPipeline(
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    ).save_pretrained(folder)


class Stages:
    """Seconds and peak memory of stages that are measured one after the other.

    Args:
        cuda: measure the memory of the GPU too.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Measure what happens inside; a stage that is entered again adds its seconds and keeps its highest peak."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the kernel's peak starts from here
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        if self.cuda:
            torch.cuda.synchronize()
        row = {"seconds": time.perf_counter() - start, "memory_gib": resident("VmHWM") / GIB}
        if self.cuda:
            row["gpu_gib"] = torch.cuda.max_memory_reserved() / GIB
        old = self.rows.get(name, {})
        self.rows[name] = {k: v + old.get(k, 0) if k == "seconds" else max(v, old.get(k, 0)) for k, v in row.items()}

    def highest(self, key: str) -> float:
        """The highest peak of all stages."""
        return max(row[key] for row in self.rows.values())


def smallest_card(peak: float) -> int | None:
    """GiB of the smallest card on which a peak fits; None where none does."""
    return next((card for card in CARDS if peak + SPARE <= card), None)


class Rehearsed(ConceptErasure):
    """ConceptErasure that measures its own hooks.

    Args:
        stages: where they are kept.
        settings: of ConceptErasure.
    """

    def __init__(self, stages: Stages, settings: dict[str, Any]) -> None:
        super().__init__(**settings)
        self.stages = stages

    def setup(self, stage: str) -> None:
        """Stage 1."""
        with self.stages.measured("refine"):
            super().setup(stage)

    def on_fit_start(self) -> None:
        """Latents."""
        with self.stages.measured("encode images"):
            super().on_fit_start()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Stage 2."""
        with self.stages.measured("train"):
            super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        """Stage 3."""
        with self.stages.measured("fuse"):
            super().on_train_end()


def user_images(folder: Path, size: tuple[int, int], count: int) -> dict[str, str]:
    """Images with masks for a concept, so that none have to be generated by random weights."""
    height, width = size
    for i in range(count):
        for name, image in (
            ("images", Image.effect_noise((width, height), 60).convert("RGB")),
            ("masks", Image.new("L", (width, height), 255)),
        ):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{i}.png")
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


def rehearse(
    stages: Stages, folder: Path, device: str, concepts: int, steps: int, formats: Sequence[str], model: dict[str, Any]
) -> None:
    """Every stage on the pipeline in ``folder / "base"``."""
    with stages.measured("load"):
        module = Rehearsed(stages, {"pretrained": str(folder / "base"), **model})
    images = user_images(folder / "pictures", image_size(module.pipeline), count=2)
    rows = [{"target": target, "anchor": "ground", **images} for target in TARGETS[:concepts]]
    data = ConceptData(rows, steps_per_concept=steps, concepts_per_batch=concepts)
    trainer = MaceTrainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    assert module.edit is not None
    original = {name: weight.cpu() for name, weight in module.refined.original.items()}
    base = BaseModel(module.pretrained, module.pretrained)
    run = Run(folder / "run", base, [{**row, "kind": "object"} for row in rows])
    finished = Finished(run, module.pipeline, module.source, module.edit, original)
    for name in formats:
        with stages.measured(f"export {name}"):
            finished.write(name, run.place(name))


def main(
    family: Literal["sd1", "sd2", "sdxl"] = "sd1",
    device: Literal["cpu", "cuda"] = "cpu",
    concepts: int = 1,
    steps: int = 3,
    formats: list[str] | None = None,
    model: dict[str, Any] | None = None,
    folder: str | None = None,
    output: str | None = None,
    toy: bool = False,
) -> None:
    """Print seconds and peak memory of each stage.

    Args:
        family: ``sd1`` (Stable Diffusion 1.4, 512 × 512), ``sd2`` (2.1, 768 × 768) or ``sdxl`` (1024 × 1024).
        device: ``cpu`` or ``cuda``.
        concepts: how many concepts are trained at once, at most ten.
        steps: LoRA steps.
        formats: what is exported; edit, refined and pipeline when left out.
        model: further settings of ``--model``, as in '{"rank": 4}'.
        folder: where the random pipeline and the run are written; a temporary folder when left out.
        output: JSON file for the figures.
        toy: a few channels in place of the real ones, to try the script itself.
    """
    if not 1 <= concepts <= len(TARGETS):
        raise ValueError(f"concepts={concepts} must be between 1 and {len(TARGETS)}.")
    torch.manual_seed(0)
    stages = Stages(device == "cuda")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        save(place / "base", family, toy)
        rehearse(stages, place, device, concepts, steps, formats or ["edit", "refined", "pipeline"], model or {})
    columns = list(next(iter(stages.rows.values())))
    rows = [[stage, *(f"{row[column]:.1f}" for column in columns)] for stage, row in stages.rows.items()]
    show_table(f"{family}, {concepts} concept(s), {steps} steps, {device}", ["stage", *columns], rows)
    summary: dict[str, Any] = {"family": family, "device": device, "concepts": concepts, "steps": steps, "toy": toy}
    summary |= {"model": model or {}, "stages": stages.rows, "peak_memory_gib": stages.highest("memory_gib")}
    print(f"Peak of main memory: {summary['peak_memory_gib']:.1f} GiB")
    if stages.cuda:
        peak = stages.highest("gpu_gib")
        summary |= {"gpu": torch.cuda.get_device_name(), "peak_gpu_gib": peak, "fits_gib": smallest_card(peak)}
        print(f"Peak of GPU memory: {peak:.1f} GiB; smallest card: {summary['fits_gib'] or 'none of the usual'} GiB")
    if output is not None:
        write_json(Path(output), summary)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
