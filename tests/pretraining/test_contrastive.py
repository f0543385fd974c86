"""CLIP at toy size: it learns, resumes exactly, and writes parts that transformers and a pipeline load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from support.seeds import seeded
from support.tolerances import BY_HAND, LEARNT, SOFTENED, STILL_THE_IMAGE, above, below, close
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from mace_pl.pretraining.augment import augment
from mace_pl.pretraining.contrastive import ContrastiveTraining, contrastive_loss, distinct
from mace_pl.pretraining.image_folder import ImagePool
from mace_pl.pretraining.sprites import SpriteImages
from mace_pl.pretraining.tokenizer import train_tokenizer
from mace_pl.train_cli import train_main


def make_module(folder: Path, pretrained: Path | None = None, freeze_text: bool = False) -> ContrastiveTraining:
    return ContrastiveTraining(
        str(folder),
        pretrained=None if pretrained is None else str(pretrained),
        freeze_text=freeze_text,
        vocab_size=560,
        resolution=16,
        patch_size=8,
        width=32,
        layers=2,
        heads=2,
        augmented=0.5,
        learning_rate=3e-3,
        warmup_steps=2,
    )


def make_pool() -> ImagePool:
    return SpriteImages(images=32, resolution=16).make_pool()


def fit(module: ContrastiveTraining, steps: int, *callbacks: ModelCheckpoint, ckpt: Path | None = None) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, SpriteImages(images=32, resolution=16, batch_size=16), ckpt_path=ckpt, weights_only=False)
    return trainer


@torch.no_grad()
def embed(clip: CLIPModel, tokenizer: CLIPTokenizer, pool: ImagePool) -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokenizer(pool.captions, padding="max_length", return_tensors="pt").input_ids
    made = clip(input_ids=ids, pixel_values=pool.images.float() / 127.5 - 1)
    return made.image_embeds, made.text_embeds


def test_training_lowers_the_loss_and_writes_parts_that_load(tmp_path: Path) -> None:
    pool = make_pool()
    fit(make_module(tmp_path / "short"), 1)
    fit(make_module(tmp_path / "long"), 100)
    losses = []
    for name in ("short", "long"):
        folder = tmp_path / name / "clip"
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        images, texts = embed(clip, CLIPTokenizer.from_pretrained(folder), pool)
        losses.append(float(F.cross_entropy(10 * images @ texts.T, torch.arange(len(images)))))
    above(1 - losses[1] / losses[0], LEARNT)
    assert sorted(p.name for p in (tmp_path / "long").iterdir()) == ["clip", "text_encoder", "tokenizer"]


def test_text_encoder_is_the_clips_own_under_both_names(tmp_path: Path) -> None:
    fit(make_module(tmp_path), 2)
    clip = CLIPModel.from_pretrained(tmp_path / "clip", dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer(["a photo of the ship"], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    with torch.no_grad():
        torch.testing.assert_close(text(ids)[0], clip.text_model(ids)[0], rtol=0, atol=0)
    with safe_open(tmp_path / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118 - no mapping
        assert file.get_tensor("text_model.final_layer_norm.weight").dtype == torch.float16
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "tokenizer" / name).is_file() and (tmp_path / "clip" / name).is_file()


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = make_module(tmp_path / "a")
    fit(whole, 5, ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1))
    resumed = make_module(tmp_path / "b")
    fit(resumed, 5, ckpt=tmp_path / "kept" / "step=2.ckpt")
    for name, value in whole.clip.state_dict().items():
        torch.testing.assert_close(resumed.clip.state_dict()[name], value, rtol=0, atol=0)


def test_frozen_text_stays_and_only_clip_is_written(tmp_path: Path) -> None:
    fit(make_module(tmp_path / "first"), 2)
    module = make_module(tmp_path / "second", tmp_path / "first" / "clip", freeze_text=True)
    fit(module, 3)
    assert [p.name for p in (tmp_path / "second").iterdir()] == ["clip"]
    first = CLIPModel.from_pretrained(tmp_path / "first" / "clip", dtype=torch.float32).state_dict()
    second = CLIPModel.from_pretrained(tmp_path / "second" / "clip", dtype=torch.float32).state_dict()
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and not [name for name in changed if name.startswith("text")]


def test_a_new_image_tower_beside_text_that_stays(tmp_path: Path) -> None:
    fit(make_module(tmp_path / "first"), 2)
    pretrained = str(tmp_path / "first" / "clip")
    settings = {"pretrained": pretrained, "freeze_text": True, "new_image_tower": True, "resolution": 16}
    module = ContrastiveTraining(
        str(tmp_path / "second"), **settings, patch_size=4, width=24, layers=1, heads=2, warmup_steps=2
    )
    fit(module, 2)
    first = CLIPModel.from_pretrained(pretrained, dtype=torch.float32)
    second, info = CLIPModel.from_pretrained(
        tmp_path / "second" / "clip", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    vision = second.config.vision_config
    assert (vision.patch_size, vision.hidden_size, vision.num_hidden_layers) == (4, 24, 1)
    assert second.config.projection_dim == first.config.projection_dim == 32
    for name, value in first.state_dict().items():
        if name.startswith("text"):
            torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "second" / "clip")
    images, texts = embed(second, tokenizer, make_pool())
    assert images.shape == texts.shape == (32, 32)
    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, resumed = (
        ContrastiveTraining(str(tmp_path / name), **settings, patch_size=4, width=24, layers=1, heads=2)
        for name in ("whole", "resumed")
    )
    fit(whole, 2, kept)
    fit(resumed, 2, ckpt=tmp_path / "kept" / "step=1.ckpt")
    for name, value in whole.clip.state_dict().items():
        torch.testing.assert_close(resumed.clip.state_dict()[name], value, rtol=0, atol=0)


def test_half_of_the_images_go_through_the_autoencoder(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seeded(0))
        vae = AutoencoderKL(
            block_out_channels=[8], norm_num_groups=4, layers_per_block=1, sample_size=16, scaling_factor=2.0
        )
    vae.save_pretrained(tmp_path / "vae")
    fit(make_module(tmp_path / "first"), 1)
    modules = []
    for autoencoder in (None, str(tmp_path / "vae")):
        folder = tmp_path / f"out{len(modules)}"
        modules.append(ContrastiveTraining(str(folder), pretrained=str(tmp_path / "first" / "clip"), freeze_text=True))
        modules[-1].autoencoder = autoencoder
        fit(modules[-1], 2)
    plain, softened = modules
    assert plain.decoded is None and softened.decoded is not None
    images = make_pool().images
    with torch.no_grad():
        seen = vae.decode(vae.encode(images.float() / 127.5 - 1).latent_dist.mode()).sample.clamp(-1, 1)
    assert softened.decoded.shape == images.shape
    made, plainly = (F.normalize((x - x.mean(0)).flatten(1), dim=1) for x in (softened.decoded.float(), seen))
    above(1 - (made * plainly).sum(1).mean(), SOFTENED)  # some noise
    nearest = (made @ plainly.T).argmax(1)
    below(float((nearest != torch.arange(len(images))).float().mean()), STILL_THE_IMAGE)
    name = "vision_model.post_layernorm.weight"
    assert not torch.equal(plain.clip.state_dict()[name], softened.clip.state_dict()[name])
    with pytest.raises(ValueError, match=r"autoencoder=.*has no config\.json"):
        fit(ContrastiveTraining(str(tmp_path / "bad"), autoencoder=str(tmp_path / "nowhere")), 1)


def test_naming_the_style_is_learnt_and_logged(tmp_path: Path) -> None:
    weights = []
    for style_weight in (0.0, 1.0):
        module = make_module(tmp_path / str(style_weight))
        module.style_weight = style_weight
        trainer = fit(module, 2)
        assert ("train/style_accuracy" in trainer.callback_metrics) == (style_weight > 0)
        weights.append(module.clip.visual_projection.weight)
    assert not torch.equal(*weights)


def test_loss_without_repetitions_is_clips() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(seeded(0)))
    places = torch.arange(6)
    expected = (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2
    close(contrastive_loss(logits, places), expected, BY_HAND)
    assert distinct(["b", "a", "b"])[0] == ["b", "a"] and distinct(["b", "a", "b"])[1].tolist() == [0, 1, 0]


def test_augmentation_is_seeded_and_keeps_the_range() -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(seeded(0))) * 2 - 1
    made = [augment(images, torch.Generator().manual_seed(seeded(seed))) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert made[0].shape == images.shape and made[0].min() >= -1 and made[0].max() <= 1


def test_tokenizer_knows_its_words_and_takes_any_text() -> None:
    captions = make_pool().captions
    tokenizer = train_tokenizer(captions, 1024)
    assert train_tokenizer(captions[::-1], 1024).get_vocab() == tokenizer.get_vocab()  # or no run could be resumed
    assert {len(tokenizer.tokenize(word)) for caption in captions for word in caption.replace(",", "").split()} == {1}
    assert tokenizer.unk_token_id not in tokenizer("Zürich 12 é!", add_special_tokens=False).input_ids
    assert tokenizer.pad_token_id == tokenizer.eos_token_id and tokenizer.model_max_length == 77
    with pytest.raises(ValueError, match="vocab_size=100 is too small"):
        train_tokenizer(captions, 100)


def test_bad_settings_name_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="freeze_text=True"):
        make_module(tmp_path, freeze_text=True)
    with pytest.raises(ValueError, match="new_image_tower=True"):
        ContrastiveTraining(str(tmp_path), new_image_tower=True)
    with pytest.raises(ValueError, match=r"pretrained=.*has no config\.json"):
        fit(make_module(tmp_path, tmp_path / "nowhere"), 1)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.output_dir.*tokenizer exists"):
        fit(make_module(tmp_path), 1)


def test_the_command_runs_the_shipped_configuration(tmp_path: Path) -> None:
    settings = {
        "model.output_dir": tmp_path / "out",
        "model.layers": 1,
        "data.images": 16,
        "data.batch_size": 8,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger.save_dir": tmp_path / "log",
        "trainer.callbacks.dirpath": tmp_path / "kept",
        "trainer.enable_progress_bar": "false",
    }
    train_main(["fit", "--config=configs/train/emoji_clip.yaml", *(f"--{k}={v}" for k, v in settings.items())])
    assert (tmp_path / "kept" / "last.ckpt").exists() and (tmp_path / "out" / "clip" / "config.json").is_file()
