"""What is exported, read by programs that have nothing of diffusers' loaders; each test is skipped without its package.

LyCORIS (Apache-2.0, ``pip install lycoris-lora``) merges kohya's LoRAs into modules. sd-mecha (MIT, ``pip install
sd-mecha``; two packages it needs are under GPL, so it is no dependency) has tables of the original checkpoints and of
kohya's names, and converts between them.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from support.families import family, four_blocks, text_config, xl_blocks
from support.finished import finished_run, truncated
from support.seeds import seeded
from support.tolerances import FLOAT32_EDIT, MOVED, above, close
from transformers import CLIPTextModel

from mace_pl.cli import erase_main
from mace_pl.export.lora import to_kohya
from mace_pl.export.single_file import own_tensors, single_file, unet_names
from mace_pl.models.cross_attention import key_value_names, key_values
from mace_pl.models.source import Source

TABLES = "sd_mecha.extensions.builtin.model_configs"
PREFIX = "model.diffusion_model."


def table(name: str, start: str = "") -> set[str]:
    """The names that a kind of file has to hold."""
    keys = import_module("sd_mecha.extensions.model_configs").resolve(name).keys()
    return {key for key, meta in keys.items() if key.startswith(start) and not meta.optional}


def test_lycoris_merges_the_kohya_lora(toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = pytest.importorskip("lycoris.wrapper")
    base = tmp_path / "base"
    family("sd1", toy_pipeline).save_pretrained(base)
    run = finished_run(tmp_path / "run", base)
    lora = tmp_path / "lora"
    more = ["--rank", "3", "--dtype", "float32"]
    erase_main(["export", "--run", str(run), "--format", "lora", "--output", str(lora), *more])
    expected, _ = truncated(run, base, 3)
    unet = type(family("sd1", toy_pipeline).unet).from_pretrained(base, subfolder="unet")
    before = {name: weight.clone() for name, weight in key_values(unet).items()}
    monkeypatch.setattr(wrapper.LycorisNetwork, "LORA_PREFIX", "lora_unet")
    network, _ = wrapper.create_lycoris_from_weights(1.0, str(lora / "run.safetensors"), unet)
    assert len(network.loras) == len(expected)
    network.merge_to(1.0)
    for name, weight in key_values(unet).items():
        close(weight, expected[name], FLOAT32_EDIT)
        above((weight - before[name]).abs().max(), MOVED)


def test_a_checkpoint_holds_the_tensors_of_sd1_by_another_conversion(toy_pipeline: Path) -> None:
    pytest.importorskip("sd_mecha")
    sd1 = import_module(f"{TABLES}.convert_sd1_kohya_to_original")
    vae = import_module(f"{TABLES}.convert_huggingface_sd_vae_to_original")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(2))
        pipeline = family("sd1", toy_pipeline)
        widths = {"block_out_channels": (8, 16, 24, 24), "norm_num_groups": 8}  # they change where the real ones do
        ways = {"down": ("DownEncoderBlock2D",) * 4, "up": ("UpDecoderBlock2D",) * 4}
        blocks = {f"{way}_block_types": names for way, names in ways.items()}
        pipeline.register_modules(
            unet=four_blocks(**widths),
            vae=AutoencoderKL(layers_per_block=2, **widths, **blocks),
            text_encoder=CLIPTextModel(text_config(pipeline, num_hidden_layers=12)),
        )
    file = single_file(pipeline, Source(), None)
    assert set(file) == {key for key in table("sd1-ldm") if not key.startswith("model_ema.")}
    parts = {name: own_tensors(getattr(pipeline, name)) for name in ("unet", "vae", "text_encoder")}
    for name, tensor in file.items():
        if name.startswith(PREFIX):
            expected = parts["unet"][sd1.convert_unet_key(name).removeprefix("unet.")]
        elif name.startswith("first_stage_model."):
            own, reshaped = vae.convert_vae_key(name)
            own = own.replace(".attentions.0.norm.", ".attentions.0.group_norm.")  # which sd-mecha 1.1.8 forgets
            expected = parts["vae"][own.removeprefix("vae.")]
            expected = vae.reshape_weight_for_sd(expected) if reshaped else expected
        else:
            expected = parts["text_encoder"][sd1.convert_clip_l_key(name).removeprefix("te.text_model.")]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_names_of_sdxl_are_those_of_another_conversion() -> None:
    pytest.importorskip("sd_mecha")
    convert: Any = import_module(f"{TABLES}.convert_sdxl_diffusers_unet_to_original").convert_unet_key
    unet = xl_blocks(40, 80)  # fewer transformer blocks than the real one, else its structure
    names = unet_names(unet)
    assert set(names) <= table("sdxl-sgm", PREFIX)
    assert {name: [convert(name)] for name in names} == names
    left = {name for name in table("sdxl-sgm", PREFIX) - set(names) if ".transformer_blocks." not in name}
    assert all(name.startswith(f"{PREFIX}input_blocks.7.0.skip_connection.") for name in left)  # widths equal here


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_kohya_names_are_those_of_another_table(toy_pipeline: Path, name: str) -> None:
    pytest.importorskip("sd_mecha")
    unet = family(name, toy_pipeline).unet
    known = set(import_module("sd_mecha.extensions.model_configs").resolve(f"{name}-kohya_kohya_lora").keys())
    factors = {layer: (torch.zeros(1, 8), torch.zeros(8, 1)) for layer in key_value_names(unet)}
    found = set(to_kohya(factors, unet, sdxl=name == "sdxl"))
    assert len(found) == 3 * len(factors) and found <= known
    if name == "sd1":  # no layer of the real model is left out
        ends = (".lora_up.weight", ".lora_down.weight", ".alpha")
        whole = {k for k in known if "_attn2_to_k." in k or "_attn2_to_v." in k}
        assert found == {k for k in whole if k.endswith(ends) and k.startswith("lora_unet_")}
