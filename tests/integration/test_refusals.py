"""Input that cannot be used ends in one clear error, and nothing is written."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from support.runs import config, exit_message, statistics, user_images
from torch.nn.modules.module import register_module_forward_hook

from mace_pl.models.text_encoding import encoder_fingerprint


@pytest.mark.parametrize(
    ("sizes", "masks", "message"),
    [
        ([], [], "holds no image"),
        ([16], [], "holds no image"),
        ([16, 16], [(16, 255)], "has 1 masks"),
        ([16], [(8, 255)], "Give equal sizes"),
        ([16], [(16, 0)], "is empty"),
    ],
)
def test_bad_images_and_masks_are_refused(
    tmp_path: Path,
    toy_pipeline: Path,
    sizes: list[int],
    masks: list[tuple[int, int]],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    concept = user_images(tmp_path / "own", sizes, masks)
    assert message in exit_message(config(tmp_path, toy_pipeline, "out", [concept]), capsys)
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_named(tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    concept = user_images(tmp_path / "own", [16], [(16, 255)])
    (tmp_path / "own/images/0.png").write_bytes(b"no image")
    message = exit_message(config(tmp_path, toy_pipeline, "out", [concept]), capsys)
    assert "0.png" in message and "Replace or remove it" in message


@pytest.mark.parametrize("pretrained", ["nowhere/at/all", "empty", "checkpoints/missing"])
def test_a_wrong_model_is_refused(tmp_path: Path, pretrained: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "empty" if pretrained == "empty" else Path(pretrained)
    assert "model.pretrained" in exit_message(config(tmp_path, folder, "out"), capsys)
    assert not (tmp_path / "out").exists()


def test_a_misspelt_key_and_a_far_target_are_refused(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "lerning_rate" in exit_message([*config(tmp_path, toy_pipeline, "a"), "--model.lerning_rate", "1"], capsys)
    far = config(tmp_path, toy_pipeline, "b", templates=["a " * 80 + "{}"])
    assert "does not show the target" in exit_message(far, capsys)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("damage", ["pickle", "truncated"])
def test_a_bad_statistics_file_is_refused(
    tmp_path: Path, toy_pipeline: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prior.safetensors"
    torch.save({"gram": torch.eye(32)}, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:40])
    message = exit_message([*config(tmp_path, toy_pipeline, "out"), "--model.prior", str(path)], capsys)
    assert "model.prior" in message and "no readable safetensors file" in message


@pytest.mark.parametrize(
    ("own_encoder", "sums", "message"),
    [
        (False, torch.eye(32).double(), "belongs to another text encoder"),
        (True, torch.eye(16).double(), "expected (32, 32)"),
        (True, torch.full((32, 32), float("nan")).double(), "not finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(
    tmp_path: Path,
    toy_pipeline: Path,
    own_encoder: bool,
    sums: torch.Tensor,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = encoder_fingerprint(StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None))
    path = statistics(tmp_path / "domain.safetensors", own if own_encoder else "0" * 64, sums)
    text = exit_message([*config(tmp_path, toy_pipeline, "out"), "--model.domain", str(path)], capsys)
    assert "model.domain" in text and message in text
    assert not (tmp_path / "out").exists()


def test_a_unet_without_cross_attention_is_refused(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_pipeline, tmp_path / "plain")
    UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path / "plain" / "unet")
    assert "no cross-attention" in exit_message(config(tmp_path, tmp_path / "plain", "out"), capsys)


def test_an_output_below_a_file_is_refused(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    args = [*config(tmp_path, toy_pipeline, "out"), "--output_dir", str(tmp_path / "file" / "out")]
    assert "output_dir" in exit_message(args, capsys)
    assert not (tmp_path / "pictures").exists()


def test_targets_of_equal_tokens_are_refused_before_an_image(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passes = []
    hook = register_module_forward_hook(
        lambda module, *_: passes.append(1) if isinstance(module, UNet2DConditionModel) else None
    )
    concepts = [{"target": "ship's", "anchor": "sky"}, {"target": "ship 's", "anchor": "ground"}]
    try:
        message = exit_message(config(tmp_path, toy_pipeline, "out", concepts), capsys)
    finally:
        hook.remove()
    assert "have the same tokens" in message
    assert not passes and not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["model.prior", "model.domain"])
@pytest.mark.parametrize("given", ["{}", "{{{}: 0.5}}"])
def test_missing_statistics_are_named(
    tmp_path: Path, toy_pipeline: Path, setting: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nowhere.safetensors"
    message = exit_message([*config(tmp_path, toy_pipeline, "out"), f"--{setting}", given.format(file)], capsys)
    assert setting in message and "nowhere.safetensors" in message and "\n" not in message.strip()
    assert not (tmp_path / "out").exists()
