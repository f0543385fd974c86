"""The autoencoder at toy size: it learns, resumes exactly, and writes a folder that diffusers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from support.tolerances import BY_HAND, FLOAT16_ERROR, FLOAT32_PASS, LEARNT, SCALED_LATENTS, above, close

from mace_pl.pretraining.autoencoder import AutoencoderTraining, edge_error
from mace_pl.pretraining.sprites import SpriteImages
from mace_pl.pretraining.training import save_half
from mace_pl.train_cli import train_main


def make_module(folder: Path, **changes: float) -> AutoencoderTraining:
    settings = {"learning_rate": 3e-3, "warmup_steps": 2, **changes}
    return AutoencoderTraining(
        str(folder),
        channels=(8, 8),
        norm_groups=4,
        resolution=16,
        learning_rate=settings["learning_rate"],
        warmup_steps=int(settings["warmup_steps"]),
    )


def fit(module: AutoencoderTraining, steps: int, *callbacks: ModelCheckpoint, ckpt: Path | None = None) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = SpriteImages(images=24, resolution=16, batch_size=8)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=False)
    return trainer


def error_of(vae: AutoencoderKL) -> float:
    images = SpriteImages(images=24, resolution=16).make_pool().images.float() / 127.5 - 1
    with torch.no_grad():
        return float((vae(images).sample - images).abs().mean())


def test_training_lowers_the_error_and_writes_a_folder_that_loads(tmp_path: Path) -> None:
    module = make_module(tmp_path / "out")
    before = error_of(module.vae)
    fit(module, 40)
    above(1 - error_of(module.vae) / before, LEARNT)
    vae = AutoencoderKL.from_pretrained(tmp_path / "out" / "vae", dtype=torch.float32)
    close(error_of(vae), error_of(module.vae), FLOAT16_ERROR)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["vae"]  # nothing half-written is left
    images = SpriteImages(images=24, resolution=16).make_pool().images.float() / 127.5 - 1
    with torch.no_grad():
        found = vae.encode(images).latent_dist
        latents = torch.cat([found.sample() for _ in range(20)]) * vae.config.scaling_factor
    close(latents.std(), torch.tensor(1.0), SCALED_LATENTS)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = make_module(tmp_path / "a")
    keeper = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(whole, 7, keeper)
    resumed = make_module(tmp_path / "b")
    trainer = fit(resumed, 7, ckpt=tmp_path / "kept" / "step=3.ckpt")
    assert trainer.global_step == 7
    for name, value in whole.vae.state_dict().items():
        torch.testing.assert_close(resumed.vae.state_dict()[name], value, rtol=0, atol=0)


def test_the_decoder_alone_is_trained_and_latents_stay(tmp_path: Path) -> None:
    fit(make_module(tmp_path / "first"), 3)
    with pytest.raises(ValueError, match="decoder_only=True"):
        AutoencoderTraining(str(tmp_path / "second"), decoder_only=True)
    first = AutoencoderKL.from_pretrained(tmp_path / "first" / "vae", dtype=torch.float32)
    folder = str(tmp_path / "first" / "vae")
    module = AutoencoderTraining(str(tmp_path / "second"), pretrained=folder, decoder_only=True, warmup_steps=2)
    fit(module, 20)
    second = AutoencoderKL.from_pretrained(tmp_path / "second" / "vae", dtype=torch.float32)
    images = SpriteImages(images=24, resolution=16).make_pool().images.float() / 127.5 - 1
    with torch.no_grad():
        close(second.encode(images).latent_dist.mean, first.encode(images).latent_dist.mean, FLOAT32_PASS)
    assert second.config.scaling_factor == first.config.scaling_factor
    above(1 - error_of(second) / error_of(first), LEARNT)
    assert str(tmp_path) not in (tmp_path / "second" / "vae" / "config.json").read_text()


def test_the_edge_error_is_that_of_slopes() -> None:
    images = torch.zeros(1, 3, 4, 4)
    assert edge_error(images + 0.3, images) == 0  # a shift of all values has no slopes
    ramp = torch.arange(4.0).expand(1, 3, 4, 4)  # 1 from pixel to pixel across, 2 from pair to pair, 0 down
    close(edge_error(ramp, images), torch.tensor((1 + 2) / 4), BY_HAND)


def test_the_edge_error_is_learnt_too(tmp_path: Path) -> None:
    images = SpriteImages(images=24, resolution=16).make_pool().images.float() / 127.5 - 1
    module = make_module(tmp_path)
    module.edge_weight = 0.5
    errors = []
    for steps in (0, 40):
        if steps:
            fit(module, steps)
        with torch.no_grad():
            errors.append(edge_error(module.vae(images).sample, images))
    above(1 - errors[1] / errors[0], LEARNT)


def test_existing_parts_are_refused_unless_overwrite(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.output_dir.*vae exists"):
        fit(make_module(tmp_path), 1)
    assert (tmp_path / "vae" / "config.json").read_text() == "{}"
    module = make_module(tmp_path)
    module.overwrite = True
    with pytest.raises(ValueError, match=r"holds config\.json, which this project did not write"):
        fit(module, 1)
    (tmp_path / "vae" / "config.json").unlink()
    for _ in range(2):  # what an earlier training wrote is replaced
        module = make_module(tmp_path)
        module.overwrite = True
        fit(module, 1)
    assert (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").is_file()


def test_bad_settings_name_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"channels=\[10\]"):
        AutoencoderTraining(channels=(10,))
    with pytest.raises(ValueError, match="learning_rate=0"):
        make_module(tmp_path, learning_rate=0.0)
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        make_module(tmp_path, warmup_steps=-1)
    with pytest.raises(ValueError, match=r"trainer\.max_steps=-1"):
        fit(make_module(tmp_path), -1)


def test_diverged_weights_are_not_written(tmp_path: Path) -> None:
    module = make_module(tmp_path)
    with torch.no_grad():
        next(module.vae.parameters()).fill_(1e6)  # no float16 holds it
    with pytest.raises(ValueError, match="not finite"):
        save_half(module.vae, tmp_path / "vae")
    assert not list(tmp_path.iterdir())


def test_the_command_runs_the_shipped_configuration(tmp_path: Path) -> None:
    settings = {
        "model.output_dir": tmp_path / "out",
        "model.resolution": 16,
        "data.images": 16,
        "data.resolution": 16,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger.save_dir": tmp_path / "log",
        "trainer.callbacks.dirpath": tmp_path / "kept",
        "trainer.enable_progress_bar": "false",
    }
    train_main(["fit", "--config=configs/train/emoji_vae.yaml", *(f"--{k}={v}" for k, v in settings.items())])
    assert (tmp_path / "kept" / "last.ckpt").exists()
    assert AutoencoderKL.from_pretrained(tmp_path / "out" / "vae").config.block_out_channels == [48, 64, 96]
