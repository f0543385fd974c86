"""Presets: by the model's own files and what a card holds; a user's own settings always win."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.runs import CONCEPTS, config, exit_message

from mace_pl.cli import erase_main
from mace_pl.commands.presets import CARDS, TABLE, fitting, preset_of
from mace_pl.models.facts import CONTEXT
from mace_pl.run import Run

MEMORY = {name: entry["memory"] for name, entry in yaml.safe_load(TABLE.read_text()).items()}
CHECKPOINTING = {"model.gradient_checkpointing": True}


def model(folder: Path, width: int, channels: int = 320, side: int = 64) -> str:
    """The configurations of a model, and no weights."""
    files = {
        "unet/config.json": {"cross_attention_dim": width, "block_out_channels": [channels], "sample_size": side},
        "scheduler/scheduler_config.json": {"_class_name": "PNDMScheduler"},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def original(file: Path, channels: int, width: int) -> str:
    """A single checkpoint with the layer that says the family."""
    save_file({CONTEXT.format(1): torch.zeros(channels, width)}, file)
    return str(file)


def of(given: str | None, pretrained: str) -> Any:
    return preset_of(given, {"pretrained": pretrained}, "cpu")


def test_the_family_is_read_from_the_model(tmp_path: Path) -> None:
    found = {
        "sd15": model(tmp_path / "1", 768),
        "sd21": model(tmp_path / "2", 1024, side=96),
        "sdxl": model(tmp_path / "xl", 2048, side=128),
        "tiny": model(tmp_path / "tiny", 32, channels=32),
    }
    for (family, place), pixels in zip(found.items(), (512, 768, 1024, 512), strict=True):
        preset = of(f"{family}:24", place)
        assert preset.family == family and preset.image == f"images of {pixels} pixels, PNDMScheduler of the model"
        other = next(name for name in found if name != family)
        with pytest.raises(ValueError, match=f"preset={other}: the files of .* are of {family}"):
            of(other, place)
    assert of("sd15:8", original(tmp_path / "one.safetensors", 320, 768)).family == "sd15"
    with pytest.raises(ValueError, match="are of sd21"):
        of("sd15", original(tmp_path / "two.safetensors", 320, 1024))
    assert of(None, found["sd15"]) is None, "a CPU has no card, and nobody asked"
    assert of(None, found["tiny"]).settings == {"model.lr": 3e-4, "data.image_guidance": 5.0}


@pytest.mark.parametrize(("part", "text"), [("scheduler/scheduler_config.json", "[]"), ("unet/config.json", "7")])
def test_a_model_whose_configurations_say_nothing_is_left_to_who_loads_it(part: str, text: str, tmp_path: Path) -> None:
    place = model(tmp_path / "model", 768)
    (tmp_path / "model" / part).write_text(text)
    assert of("sd15:24", place).family == "sd15"
    (tmp_path / "model/unet/config.json").write_text('{"cross_attention_dim": 32, "block_out_channels": []}')
    assert of("sd15:24", place).family == "sd15"


@pytest.mark.parametrize("given", ["sd3", "sd15:much", "sd15:-8", "sd15:nan", "8"])
def test_what_is_no_preset_is_refused_with_those_that_are(given: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset=.* Choose from sd15, sd21, sdxl, tiny, with what a card holds"):
        of(given, str(tmp_path))


def test_a_card_that_holds_less_saves_more() -> None:
    taken = {(family, card): fitting(family, MEMORY[family], None, card) for family in MEMORY for card in CARDS}
    assert [taken["sd15", card][0] for card in CARDS] == [{}] * 4
    assert [taken["sd21", card][0] for card in CARDS[1:]] == [{"data.images_per_batch": 4}, {}, {}]
    assert taken["sdxl", 24][0] == CHECKPOINTING
    assert "sd21 does not fit into 8 GB" in taken["sd21", 8][1] and not taken["sd21", 8][0]
    assert "sdxl does not fit into 12 GB" in taken["sdxl", 12][1] and not taken["sdxl", 12][0]
    assert all("not measured on this card" in says for _, says in taken.values())
    assert fitting("sd21", MEMORY["sd21"], 64, 8)[0] != taken["sd21", 8][0], "images of 512 pixels take less"


def test_own_settings_win_and_what_was_taken_is_printed_and_written(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run", CONCEPTS[:1])  # with an lr
    content = yaml.safe_load((tmp_path / "run.yaml").read_text())
    del content["data"]["image_guidance"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    args += ["--preset", "tiny:8", "--report_seeds", "0", "--save_pipeline", "false", "--model.method", "UCE"]
    erase_main(args)
    said = " ".join(capsys.readouterr().out.split())
    assert "Preset tiny (as named), a card of 8 GB: data.image_guidance=5.0; images of 16 pixels, DDIMScheduler" in said
    assert "Your own settings stay: model.lr=0.01" in said and "not measured on this card" in said
    written = Run.load(tmp_path / "run").config
    assert (written["model"]["lr"], written["data"]["image_guidance"], written["preset"]) == (0.01, 5.0, "tiny:8")


def test_what_a_family_always_wants_is_taken_where_nobody_asks(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run", CONCEPTS[:1], image_guidance=2.0)
    content = yaml.safe_load((tmp_path / "run.yaml").read_text())
    del content["model"]["lr"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    erase_main([*args, "--report_seeds", "0", "--save_pipeline", "false", "--model.method", "UCE"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Preset tiny (read from the model), no card: model.lr=0.0003; images of 16 pixels" in said
    assert "Your own settings stay: data.image_guidance=2.0" in said
    written = Run.load(tmp_path / "run").config
    assert (written["model"]["lr"], written["data"]["image_guidance"], written["preset"]) == (3e-4, 2.0, None)


def test_a_preset_of_another_family_ends_the_command_in_one_line(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run", CONCEPTS[:1])
    assert "are of tiny. Leave the preset out, or give tiny." in exit_message([*args, "--preset", "sdxl"], capsys)
