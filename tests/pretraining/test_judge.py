"""The second judge at toy size: it learns, resumes exactly, and evaluation reads what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from support.tolerances import FLOAT16_ERROR, LEARNT, above, close
from torch.nn import functional as F  # noqa: N812

from mace_pl.evaluation.convolutional import ConvolutionalJudge
from mace_pl.evaluation.emptiness import contrast
from mace_pl.pretraining.image_folder import ImagePool
from mace_pl.pretraining.judge import JudgeTraining
from mace_pl.pretraining.sprites import SpriteImages
from mace_pl.train_cli import train_main


def make_data() -> SpriteImages:
    return SpriteImages(images=32, resolution=16, manners=0.5, batch_size=16)


def make_module(folder: Path) -> JudgeTraining:
    return JudgeTraining(
        str(folder), channels=(8, 16), smoothing=0.0, augmented=0.5, learning_rate=1e-2, warmup_steps=2
    )


def fit(module: JudgeTraining, steps: int, *callbacks: ModelCheckpoint, ckpt: Path | None = None) -> None:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, make_data(), ckpt_path=ckpt, weights_only=False)


def shown(pool: ImagePool) -> list[Image.Image]:
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pool.images]


def error_of(judge: ConvolutionalJudge, truth: list[str], images: list[Image.Image]) -> float:
    chances = judge(images)
    return float(F.nll_loss(chances.clamp(min=1e-9).log(), torch.tensor([judge.names.index(name) for name in truth])))


def test_it_learns_concepts_and_styles_and_evaluation_reads_it(tmp_path: Path) -> None:
    pool = make_data().make_pool()
    images = shown(pool)
    fit(make_module(tmp_path / "short"), 2)
    module = make_module(tmp_path / "long")
    fit(module, 80)
    for of, truth in (("concepts", pool.concepts), ("styles", pool.styles)):
        judges = [
            ConvolutionalJudge(str(tmp_path / name / "judge.safetensors"), of)  # type: ignore[arg-type]
            for name in ("short", "long")
        ]
        errors = [error_of(judge, truth, images) for judge in judges]
        above(1 - errors[1] / errors[0], LEARNT)
        assert judges[1].names == sorted(set(truth))
        close(judges[1](images).sum(dim=1), torch.ones(len(images)), FLOAT16_ERROR)


def test_what_shows_nothing_is_empty_and_every_image_of_training_is_not(tmp_path: Path) -> None:
    fit(make_module(tmp_path), 2)
    judge = ConvolutionalJudge(str(tmp_path / "judge.safetensors"))
    images = shown(make_data().make_pool())
    assert not judge.empty(images).any()
    blank = [Image.new("RGB", (16, 16), colour) for colour in ("white", (120, 170, 240))]
    assert judge.empty(blank).all() and not judge(blank).any()  # a row of zeros: nothing to judge
    faintest = min(float(contrast(p[None].float() / 127.5 - 1)) for p in make_data().make_pool().images)
    assert judge.threshold == faintest / 2


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = make_module(tmp_path / "a")
    fit(whole, 5, ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1))
    resumed = make_module(tmp_path / "b")
    fit(resumed, 5, ckpt=tmp_path / "kept" / "step=2.ckpt")
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0)


def test_bad_settings_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"channels=\[8\]"):
        JudgeTraining(channels=(8,))
    with pytest.raises(ValueError, match="smoothing=2"):
        JudgeTraining(smoothing=2.0)
    module = make_module(tmp_path)
    module.autoencoder = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"autoencoder=.*has no config\.json"):
        fit(module, 1)
    with pytest.raises(ValueError, match=r"judge\.weights: .* is no file"):
        ConvolutionalJudge(str(tmp_path / "nowhere.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected 'judge'"):
        ConvolutionalJudge(str(tmp_path / "other.safetensors"))


def test_the_command_runs_the_shipped_configuration(tmp_path: Path) -> None:
    settings = {
        "model.output_dir": tmp_path / "out",
        "data.images": 16,
        "data.batch_size": 4,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger.save_dir": tmp_path / "log",
        "trainer.callbacks.dirpath": tmp_path / "kept",
        "trainer.enable_progress_bar": "false",
    }
    train_main(["fit", "--config=configs/train/emoji_judge.yaml", *(f"--{k}={v}" for k, v in settings.items())])
    file = tmp_path / "out" / "judge.safetensors"
    assert (tmp_path / "kept" / "last.ckpt").exists()
    assert len(ConvolutionalJudge(str(file)).concepts) == 16
    assert all(t.dtype == torch.float16 for t in load_file(file).values())
    names = 94 + 14  # concepts and styles of the whole collection; two bytes each for weights and biases
    assert file.stat().st_size + 2 * (names - 16) * (128 + 1) <= 2_000_000
