"""The rehearsal has the real shapes, and runs at toy size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["load", "refine", "encode images", "train", "fuse", "export edit", "export refined", "export pipeline"]


@pytest.fixture(scope="module")
def rehearsal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rehearsal", ROOT / "benchmarks/rehearsal.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("sd1", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        ("sdxl", {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder_2": 694_659_840}),
    ],
)
def test_the_shapes_have_the_published_numbers_of_parameters(
    rehearsal: ModuleType, family: str, parameters: dict[str, int]
) -> None:
    with torch.device("meta"):
        parts = rehearsal.build(family, False, None)
    for part, expected in parameters.items():
        assert sum(p.numel() for p in parts[part].parameters()) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_stage_is_measured(
    rehearsal: ModuleType, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsal.main(family, steps=2, toy=True, folder=str(tmp_path), output=str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["stages"]) == STAGES
    assert all(
        row["seconds"] > 0 and row["memory_gib"] > 0.05 for row in figures["stages"].values()
    )  # torch alone is more
    assert figures["peak_memory_gib"] == max(row["memory_gib"] for row in figures["stages"].values())
    shown = capsys.readouterr().out
    assert "Peak of main memory" in shown and "encode images" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # the pipeline and the run are gone


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_is_that_of_its_stage(rehearsal: ModuleType) -> None:
    stages = rehearsal.Stages(cuda=False)
    with stages.measured("large"):
        block = torch.ones(50_000_000)  # 200 MB
        del block
    with stages.measured("small"):
        pass
    assert stages.rows["large"]["memory_gib"] - stages.rows["small"]["memory_gib"] > 0.1  # of 0.19
    assert stages.highest("memory_gib") == stages.rows["large"]["memory_gib"]


@pytest.mark.parametrize(("peak", "card"), [(7.4, 8), (7.6, 12), (23.0, 24), (79.9, None)])
def test_the_smallest_card_is_named(rehearsal: ModuleType, peak: float, card: int | None) -> None:
    assert rehearsal.smallest_card(peak) == card


def test_presets_calculate_with_what_a_step_takes(toy_pipeline: Path) -> None:
    """Tensors without values take what tensors with values take."""
    spec = importlib.util.spec_from_file_location("preset_memory", ROOT / "benchmarks/preset_memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        spec.loader.exec_module(module)
    settings = json.loads((toy_pipeline / "unet/config.json").read_text())
    for checkpointing, mixed in ((False, False), (True, False), (True, True)):
        real = module.step_bytes(UNet2DConditionModel.from_config(settings), checkpointing, mixed)
        with FakeTensorMode():
            fake = module.step_bytes(UNet2DConditionModel.from_config(settings), checkpointing, mixed)
        assert (
            0.98 * real <= fake <= 1.02 * real
        )  # counted bytes, not measured time: only what an allocator pads differs
