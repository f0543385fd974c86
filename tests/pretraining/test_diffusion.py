"""The UNet's training at toy size: it learns, resumes exactly, writes a pipeline, and fine-tunes a given one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from support.seeds import seeded
from support.tolerances import BY_HAND, FINE_TUNED, FLOAT16_ERROR, FLOAT32_PASS, LEARNT, MOVED, above, below, close

from mace_pl.pretraining.diffusion import DiffusionTraining
from mace_pl.pretraining.image_folder import ImageFolder
from mace_pl.pretraining.sprites import SpriteImages
from mace_pl.train_cli import train_main


@pytest.fixture
def parts(toy_pipeline: Path, tmp_path: Path) -> Path:
    """A folder with the vae, text_encoder and tokenizer of the toy pipeline."""
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(toy_pipeline / part, tmp_path / "parts" / part)
    return tmp_path / "parts"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three captioned images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for i, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (20, 16), colour).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"a photo of a {colour} wall"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def make_module(folder: Path, pretrained: Path | None = None, **changes: Any) -> DiffusionTraining:
    settings = {"prediction_type": "epsilon", "snr_gamma": 5.0, "empty_captions": 0.1, "ema_decay": 0.5, **changes}
    return DiffusionTraining(
        str(folder),
        pretrained=None if pretrained is None else str(pretrained),
        channels=(16, 32),
        heads=2,
        norm_groups=8,
        prediction_type=settings["prediction_type"],
        snr_gamma=settings["snr_gamma"],
        empty_captions=settings["empty_captions"],
        ema_decay=settings["ema_decay"],
        learning_rate=3e-3,
        warmup_steps=2,
    )


def fit(
    module: DiffusionTraining,
    steps: int,
    *callbacks: ModelCheckpoint,
    data: LightningDataModule | None = None,
    ckpt: Path | None = None,
) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = data or SpriteImages(images=16, resolution=16, batch_size=8)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=False)
    return trainer


@torch.no_grad()
def error_of(module: DiffusionTraining, unet: Any) -> float:
    """Mean squared error of the predicted noise, the same noise at every call."""
    generator = torch.Generator().manual_seed(seeded(0))
    clean = module.latents
    steps = torch.linspace(0, 999, len(clean)).long()
    noise = torch.randn(clean.shape, generator=generator)
    noisy = module.scheduler.add_noise(clean, noise, steps)
    made = unet(noisy, steps, module.texts[module.text_of]).sample
    return float((made - noise).square().mean())


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_training_lowers_the_error_and_writes_a_pipeline(parts: Path) -> None:
    given = checksums(parts)
    module = make_module(parts)
    fit(module, 40)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(parts, dtype=torch.float32)
    fresh, _ = module.new_parts()
    above(1 - error_of(module, pipeline.unet) / error_of(module, fresh), LEARNT)
    close(error_of(module, pipeline.unet), error_of(module, module.average.module), FLOAT16_ERROR)
    assert given.items() <= checksums(parts).items()
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of the ship", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 16, 16, 3)


def test_a_new_unet_starts_from_the_weights_that_fit(parts: Path, tmp_path: Path) -> None:
    given, scheduler = make_module(parts).new_parts()
    scheduler.save_pretrained(tmp_path / "scheduler")
    with torch.no_grad():
        for weight in given.parameters():
            weight.add_(1.0)
    given.save_pretrained(tmp_path / "given")
    wider = shutil.copytree(parts, tmp_path / "wider")  # an autoencoder with twice as many channels in its latents
    config = json.loads((wider / "vae" / "config.json").read_text())
    (wider / "vae" / "config.json").write_text(json.dumps({**config, "latent_channels": 2 * config["latent_channels"]}))
    module = make_module(wider)
    fresh = module.new_parts()[0].state_dict()
    module.start = str(tmp_path / "given")
    started = module.new_parts()[0].state_dict()
    new = {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
    for name, weight in started.items():
        assert torch.equal(weight, fresh[name] if name in new else given.state_dict()[name]), name
    module.start = str(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=r"start=.*has no config\.json"):
        module.new_parts()
    with pytest.raises(ValueError, match="Set one of them"):
        DiffusionTraining(pretrained="a", start="b")


def test_a_resumed_run_equals_an_unbroken_one(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts, tmp_path / "again")
    whole = make_module(parts)
    fit(whole, 5, ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1))
    resumed = make_module(tmp_path / "again")
    fit(resumed, 5, ckpt=tmp_path / "kept" / "step=2.ckpt")
    for name, value in whole.state_dict().items():  # the average's weights and count among them
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert checksums(parts) == checksums(tmp_path / "again")


def test_latents_and_texts_are_what_the_pipeline_uses(parts: Path) -> None:
    module = make_module(parts)
    fit(module, 1)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(parts, dtype=torch.float32)
    pool = module.pool()
    with torch.no_grad():
        text, empty = pipeline.encode_prompt(pool.captions[3], "cpu", 1, True)
        latent = pipeline.vae.encode(pool.images[3:4].float() / 127.5 - 1).latent_dist.mean
    close(module.texts[module.text_of[3:4]], text, FLOAT32_PASS)
    close(module.texts[:1], empty, FLOAT32_PASS)
    close(module.latents[3:4], latent * pipeline.vae.config.scaling_factor, FLOAT32_PASS)


def test_min_snr_weights(parts: Path) -> None:
    steps = torch.tensor([0, 500, 999])
    module = make_module(parts)
    module.setup("predict")
    snr = module.scheduler.alphas_cumprod[steps] / (1 - module.scheduler.alphas_cumprod[steps])
    assert snr[0] > 5 > snr[1]
    close(module.weights(steps), torch.tensor([5 / float(snr[0]), 1.0, 1.0]), BY_HAND)
    velocity = make_module(parts, prediction_type="v_prediction")
    velocity.setup("predict")
    close(velocity.weights(steps), snr.clamp(max=5) / (snr + 1), BY_HAND)
    assert make_module(parts, snr_gamma=None).weights(steps).tolist() == [1.0, 1.0, 1.0]


def test_the_average_forgets_the_first_weights_of_a_short_run(parts: Path) -> None:
    module = make_module(parts, ema_decay=0.9)
    averages, weights = [torch.zeros(2)], [torch.ones(2)]
    module.follow(averages, weights, torch.tensor(1))  # decay 2 / 11
    close(averages[0], torch.full((2,), 9 / 11), BY_HAND)
    averages = [torch.zeros(2)]
    module.follow(averages, weights, torch.tensor(1000))  # decay 0.9
    close(averages[0], torch.full((2,), 0.1), BY_HAND)


def test_velocity_is_learned_and_written_down(parts: Path) -> None:
    fit(make_module(parts, prediction_type="v_prediction"), 2)
    written = json.loads((parts / "scheduler" / "scheduler_config.json").read_text())
    assert written["prediction_type"] == "v_prediction"


def test_fine_tuning_leaves_its_input_alone(toy_pipeline: Path, images: Path, tmp_path: Path) -> None:
    before = checksums(toy_pipeline)
    module = make_module(tmp_path / "out", toy_pipeline)
    fit(module, 3, data=ImageFolder(str(images), resolution=16, batch_size=2))
    assert checksums(toy_pipeline) == before
    after = checksums(tmp_path / "out")
    same = {name for name, digest in before.items() if after.get(name) == digest}
    readable = {"text_encoder/model.safetensors"}  # its names are those that every program reads
    assert {name for name in before if not name.startswith("unet/")} - readable <= same
    old: Any = UNet2DConditionModel.from_pretrained(toy_pipeline / "unet")
    new: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float32).unet
    moved = [(old.state_dict()[name] - value).abs().max() for name, value in new.state_dict().items()]
    above(torch.stack(moved).max(), MOVED)
    below(float(torch.stack(moved).max()), FINE_TUNED)


def test_bad_settings_name_the_argument(parts: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"channels=\[10, 20\]"):
        DiffusionTraining(channels=(10, 20))
    with pytest.raises(ValueError, match=r"empty_captions=2"):
        make_module(parts, empty_captions=2)
    with pytest.raises(ValueError, match=r"snr_gamma=0"):
        make_module(parts, snr_gamma=0)
    with pytest.raises(ValueError, match=r"output_dir=.* lacks \['vae', 'text_encoder', 'tokenizer'\]"):
        fit(make_module(tmp_path / "nothing"), 1)
    with pytest.raises(ValueError, match=r"pretrained=.* lacks"):
        fit(make_module(tmp_path / "out", parts), 1)
    with pytest.raises(ValueError, match=r"output_dir=.* is the pretrained folder itself"):
        fit(make_module(toy_pipeline, toy_pipeline), 1)
    shutil.copytree(toy_pipeline, tmp_path / "taken")
    index = tmp_path / "taken" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    with pytest.raises(ValueError, match=r"pretrained=.* is a StableDiffusionXLPipeline"):
        fit(make_module(tmp_path / "out", tmp_path / "taken"), 1)
    with pytest.raises(ValueError, match=r"model\.output_dir.* exists"):
        fit(make_module(tmp_path / "taken", toy_pipeline), 1)


@pytest.mark.parametrize("name", ["emoji_unet", "finetune"])
def test_the_command_runs_the_shipped_configuration(
    name: str, parts: Path, toy_pipeline: Path, images: Path, tmp_path: Path
) -> None:
    new = {"model.output_dir": parts, "model.channels": "[16,16]", "data.images": 8}
    base = Path(shutil.copytree(toy_pipeline, tmp_path / "a model"))
    for name_of, content in (("README.md", "seen in 98 %"), ("sheet.png", "an image")):
        (base / name_of).write_text(content)
    given = {"model.output_dir": tmp_path / "out", "model.pretrained": base, "data.folder": images}
    settings = {
        **(new if name == "emoji_unet" else given),
        "data.resolution": 16,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger.save_dir": tmp_path / "log",
        "trainer.callbacks.dirpath": tmp_path / "kept",
        "trainer.enable_progress_bar": "false",
    }
    train_main(["fit", f"--config=configs/train/{name}.yaml", *(f"--{k}={v}" for k, v in settings.items())])
    assert (tmp_path / "kept" / "last.ckpt").exists()
    StableDiffusionPipeline.from_pretrained(settings["model.output_dir"])
    if name == "finetune":
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert "# Fine-tuned from a model" in card and "for 2 steps" in card and "98 %" not in card
        assert not (tmp_path / "out" / "sheet.png").exists()
