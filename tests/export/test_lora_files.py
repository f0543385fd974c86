"""LoRAs of other programs: each key changes a layer as diffusers and PEFT would, or the file is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.families import family
from support.finished import finished_run, noise_of
from support.tolerances import FLOAT16_PASS, FLOAT32_EDIT, MOVED, above, close

from mace_pl.commands.export import export_run
from mace_pl.errors import UserError
from mace_pl.export.apply import apply_files
from mace_pl.files.artifacts import write_tensors

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def base(folder: Path) -> Any:
    return DiffusionPipeline.from_pretrained(folder, safety_checker=None)


def pair(layer: Any, key: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A layer of rank 2 and alpha 1 in kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = layer.weight.shape
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, width), (rows, 2)))
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}


@pytest.fixture
def kohya(toy_pipeline: Path) -> dict[str, torch.Tensor]:
    pipeline = base(toy_pipeline)
    unet, encoder = pipeline.unet, pipeline.text_encoder
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    text = getattr(encoder, "text_model", encoder).encoder.layers[0].self_attn.q_proj
    return pair(layer, LAYER) | pair(text, TEXT, 1)


def changed(folder: Path, place: Path) -> dict[str, torch.Tensor]:
    """W' − W of every weight of UNet and text encoder that the file changes."""
    before, pipeline = base(folder), base(folder)
    apply_files(pipeline, [str(place)])
    found = {}
    for part in ("unet", "text_encoder"):
        old, new = (getattr(p, part).state_dict() for p in (before, pipeline))
        found |= {f"{part}.{n}": new[n] - w for n, w in old.items() if not torch.equal(new[n], w)}
    return found


def test_alpha_and_text_encoder_of_kohya(toy_pipeline: Path, tmp_path: Path, kohya: dict[str, torch.Tensor]) -> None:
    save_file(kohya, tmp_path / "kohya.safetensors")
    found = changed(toy_pipeline, tmp_path / "kohya.safetensors")
    assert {name.partition(".")[0] for name in found} == {"unet", "text_encoder"} and len(found) == 2
    for name, key in zip(sorted(found), (TEXT, LAYER), strict=True):
        delta = kohya[f"{key}.lora_up.weight"] @ kohya[f"{key}.lora_down.weight"] / 2
        close(found[name], delta, FLOAT32_EDIT)


def test_peft_folders_are_applied_as_peft_merges_them(toy_pipeline: Path, tmp_path: Path) -> None:
    pipeline = base(toy_pipeline)
    patterns = {"rank_pattern": {"attn2.to_v": 3}, "alpha_pattern": {"attn2.to_v": 2}}
    settings = LoraConfig(
        r=2,
        lora_alpha=8,
        target_modules=r".*attn2\.to_[kv]|conv_in",
        use_rslora=True,
        init_lora_weights=False,
        **patterns,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(pipeline.unet, settings)
    adapted.save_pretrained(tmp_path / "peft")
    expected = adapted.merge_and_unload().state_dict()
    for place in (tmp_path / "peft", tmp_path / "peft" / "adapter_model.safetensors"):
        found = base(toy_pipeline)
        apply_files(found, [str(place)])
        own = found.unet.state_dict()
        assert len(own) == len(expected)
        for name, weight in expected.items():
            close(own[name], weight, FLOAT32_EDIT)
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"model\.apply: .* its alpha is in adapter_config\.json"):
        apply_files(base(toy_pipeline), [str(tmp_path / "peft" / "adapter_model.safetensors")])


def test_alpha_that_diffusers_saves_beside_a_lora(toy_pipeline: Path, tmp_path: Path) -> None:
    pipeline = base(toy_pipeline)
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_k"], init_lora_weights=False))
    layers = {n: m for n, m in pipeline.unet.named_modules() if n.endswith("to_k")}
    tensors = {
        f"{n}.lora_{x}.weight": getattr(m, f"lora_{x}")["default"].weight.detach()
        for n, m in layers.items()
        for x in "AB"
    }
    said = {"lora_alpha": 6, "r": 2}
    StableDiffusionPipeline.save_lora_weights(tmp_path, tensors, unet_lora_adapter_metadata=said)
    found = changed(toy_pipeline, tmp_path)
    for name in layers:
        delta = 3 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        close(found[f"unet.{name}.weight"], delta, FLOAT32_EDIT)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("format", ["lora", "lora_diffusers", "lora_peft"])
def test_every_form_of_an_own_lora_is_applied(name: str, format: str, toy_pipeline: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        family(name, toy_pipeline).save_pretrained(tmp_path / "base")
    run = finished_run(tmp_path / "run", tmp_path / "base")
    place = export_run(str(run), format, rank=8)
    whole, lora = base(tmp_path / "base"), base(tmp_path / "base")
    before = noise_of(lora.unet)
    apply_files(whole, [str(run)])
    apply_files(lora, [str(place)])
    close(noise_of(lora.unet), noise_of(whole.unet), FLOAT16_PASS)
    above((noise_of(lora.unet) - before).abs().max(), MOVED)


def attn7(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {k.replace("attn2", "attn7"): v.clone() for k, v in tensors.items() if k.startswith(LAYER)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (attn7, f"{LAYER.replace('attn2', 'attn7')} (1 of its 3 layers)"),
        (lambda t: t | {f"{LAYER}.dora_scale": torch.ones(1, 32)}, "dora_scale"),
        (lambda t: t | {f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
        (lambda t: t | {f"{LAYER}.lokr_w1": torch.ones(2, 2)}, "LoKr"),
        (lambda t: t | {f"{LAYER}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "core"),
        (lambda t: t | {"lora_unet_conv_in.diff_b": torch.ones(2)}, "differences or biases"),
        (lambda t: t | {"bundle_emb.ship.string_to_param.*": torch.ones(2)}, "keys would be left out"),
        (lambda t: t | {f"{LAYER}.lora_up.weight": torch.ones(3, 2)}, "does not fit layer"),
        (lambda t: t | {f"{LAYER}.lora_up.weight": torch.full((64, 2), torch.nan)}, "not finite"),
        (lambda t: {k: v for k, v in t.items() if k != f"{TEXT}.lora_up.weight"}, "only a half of layer"),
        (lambda t: {"x": torch.ones(1)}, "no ordinary LoRA"),
    ],
)
def test_what_would_be_left_out_is_refused(
    change: Any, said: str, toy_pipeline: Path, tmp_path: Path, kohya: dict[str, torch.Tensor]
) -> None:
    save_file(change(kohya), tmp_path / "lora.safetensors")
    pipeline = base(toy_pipeline)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    with pytest.raises(ValueError, match=r"^model\.apply: ") as refusal:
        apply_files(pipeline, [str(tmp_path / "lora.safetensors")])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())


def test_other_adapters_of_peft_are_refused(toy_pipeline: Path, tmp_path: Path) -> None:
    pipeline = base(toy_pipeline)
    get_peft_model(pipeline.unet, LoraConfig(r=2, target_modules=["to_k"])).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for key, value in (("use_dora", True), ("peft_type", "LOHA")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=f"no ordinary LoRA: its adapter_config.json has {key}={value}"):
            apply_files(base(toy_pipeline), [str(tmp_path)])
    for text, said in (("{", "is no JSON"), ("[]", "holds no settings")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match=f"its adapter_config.json {said}"):
            apply_files(base(toy_pipeline), [str(tmp_path)])
    assert load_file(tmp_path / "adapter_model.safetensors")


def test_refined_weights_replace_nothing_that_was_applied(
    toy_pipeline: Path, tmp_path: Path, kohya: dict[str, torch.Tensor]
) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    export_run(str(run), "refined")
    save_file(kohya, tmp_path / "kohya.safetensors")
    edit, refined, lora = (
        str(run / "edit.safetensors"),
        str(run / "refined.safetensors"),
        f"{tmp_path}/kohya.safetensors",
    )
    for first in (edit, refined, lora):
        with pytest.raises(
            UserError, match=r"model\.apply: .*refined\.safetensors holds whole weights, which would repl"
        ):
            apply_files(base(toy_pipeline), [first, refined])
    with pytest.warns(UserWarning, match="are edits, each solved for its base alone"):
        apply_files(base(toy_pipeline), [refined, lora, edit])
    write_tensors(tmp_path / "sums.safetensors", {"F": torch.eye(2)}, "concept", {})
    with pytest.raises(UserError, match=r"sums\.safetensors holds the sums of a concept, which is no edit"):
        apply_files(base(toy_pipeline), [f"{tmp_path}/sums.safetensors"])
