"""SDXL's pooled text from end to end, on a toy that was taught two names by that path alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from support.finished import noise_of
from support.runs import config
from support.taught import TEMPLATES, generated, taught, trained_images
from support.tolerances import EDITED_PASS, FLOAT64_SUMS, MOVED, above, close
from torch import Tensor

from mace_pl.cli import erase_main
from mace_pl.export.apply import load_edited
from mace_pl.methods.edit import Edit
from mace_pl.models.pooled_text import POOLED
from mace_pl.models.text_encoding import encode_both
from mace_pl.run import Run

PROMPTS = ["a photo of a ship", "a photo of a dog"]
FORMATS = "[pipeline, single_file, unet, lora, lora_diffusers]"


@pytest.fixture(scope="module")
def base(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(toy_pipeline, tmp_path_factory.mktemp("taught") / "base")


def erased(folder: Path, base: Path, name: str, *more: str) -> Path:
    args = config(folder, base, name, [{"target": "ship", "anchor": "dog"}], templates=list(TEMPLATES))
    erase_main([*args, "--model.method", "MaceRefinement", "--report_seeds", "0", *more])
    return folder / name


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    return erased(base.parent, base, "run", "--export", FORMATS)


@pytest.fixture(scope="module")
def off(base: Path) -> Path:
    return erased(base.parent, base, "off", "--model.pooled", "false", "--export", "[pipeline]")


def distances(pipeline: StableDiffusionXLPipeline) -> Tensor:
    """Of what "ship" and "dog" give to the images that both were taught with, [2, 2]."""
    trained = trained_images(pipeline)
    found = generated(pipeline, PROMPTS)
    return (found[:, None] - trained[None]).square().mean(dim=(2, 3, 4)).sqrt()


def test_the_target_stays_without_the_edit_of_the_pooled_text_and_goes_with_it(
    base: Path, run: Path, off: Path
) -> None:
    ship, dog = 0, 1
    before, without, with_it = (
        distances(StableDiffusionXLPipeline.from_pretrained(f)) for f in (base, off / "pipeline", run / "pipeline")
    )
    for found in (before, without):  # at least thrice as far from the other image
        assert 3 * found[ship, ship] < found[ship, dog], found
    assert 3 * with_it[ship, dog] < with_it[ship, ship], with_it
    for found in (before, without, with_it):
        assert 3 * found[dog, dog] < found[dog, ship], found


def test_the_setting_off_leaves_the_layer_and_what_is_written_of_it(run: Path, off: Path, base: Path) -> None:
    on, without = (load_file(folder / "refined.safetensors") for folder in (run, off))
    assert on.keys() - without.keys() == {f"{POOLED}.weight"}
    assert all(torch.equal(on[name], weight) for name, weight in without.items())
    assert Edit.load(off / "edit.safetensors").pooled is None
    assert load_file(off / "statistics/ship.safetensors").keys() == {"F", "G", "F_all", "pairs"}
    first, other = (load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (base, off / "pipeline"))
    assert torch.equal(first[f"{POOLED}.weight"], other[f"{POOLED}.weight"])


def test_every_form_is_the_edited_pipeline(run: Path, base: Path) -> None:
    edited = StableDiffusionXLPipeline.from_pretrained(run / "pipeline")
    images, noise = generated(edited, PROMPTS), noise_of(edited.unet)
    above((noise - noise_of(StableDiffusionXLPipeline.from_pretrained(base).unet)).abs().max(), MOVED)
    single = StableDiffusionXLPipeline.from_single_file(
        str(run / "model.safetensors"), config=str(base), local_files_only=True
    )
    assert torch.equal(generated(single, PROMPTS), images)
    for file in ("refined", "unet"):
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        unet.load_state_dict(load_file(run / f"{file}.safetensors"), strict=False)
        assert torch.equal(noise_of(unet), noise)
    close(noise_of(load_edited(str(base), str(run / "edit.safetensors")).unet), noise, EDITED_PASS)
    for folder, layer in (("lora", "lora_unet_label_emb_0_0"), ("lora_diffusers", POOLED)):
        card = (run / folder / "README.md").read_text()
        assert layer in card and "pooled embedding" in card
    assert "earlier ones refuse" in (run / "lora/README.md").read_text()
    assert "add_embedding.linear_1" in (run / "pipeline/README.md").read_text()


@pytest.mark.parametrize("naming", ["lora", "lora_diffusers"])
def test_a_lora_of_it_loads_in_diffusers(run: Path, base: Path, tmp_path: Path, naming: str) -> None:
    output = tmp_path / "lora"
    erase_main(["export", "--run", str(run), "--format", naming, "--rank", "16", "--output", str(output)])
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.load_lora_weights(output, weight_name="run.safetensors")
    weight = pipeline.unet.get_submodule(POOLED)
    assert "default_0" in weight.lora_A
    close(noise_of(pipeline.unet), noise_of(UNet2DConditionModel.from_pretrained(run / "pipeline/unet")), EDITED_PASS)


def test_it_is_fused_again_by_degrees(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    erase_main(["fuse", "--run", str(run), "--output_dir", str(folder), "--weights", "ship=0.5"])
    sums, half, whole = Run.load(run).concept("ship")[0], Run.load(folder).edit.pooled, Run.load(run).edit.pooled
    assert half is not None and whole is not None
    identity = torch.eye(len(half), dtype=torch.float64)
    close(half.double() - identity, 0.5 * (whole.double() - identity), EDITED_PASS)
    weight = load_file(folder / "pipeline/unet/diffusion_pytorch_model.safetensors")[f"{POOLED}.weight"]
    assert torch.equal(weight, load_file(folder / "refined.safetensors")[f"{POOLED}.weight"])
    assert float(sums.pooled_pairs) == len(TEMPLATES)


def test_statistics_hold_pooled_sums_that_an_edit_preserves(base: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\na cat\na dog\n")
    prior = tmp_path / "prior.safetensors"
    args = ["--model.pretrained", str(base), "--data.sources", f"[{tmp_path / 'captions.txt'}]"]
    erase_main(["cache", *args, "--model.output", str(prior), "--trainer.accelerator", "cpu"])
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    dog, cat = encode_both(pipeline, ["a dog", "a cat"])[1].double()
    close(load_file(prior)["pooled"], 2 * torch.outer(dog, dog) + torch.outer(cat, cat), EDITED_PASS)
    both = tmp_path / "both.safetensors"
    erase_main(["merge", str(prior), str(prior), "--output", str(both), "--allow_overlap", "true"])
    close(load_file(both)["pooled"], 2 * load_file(prior)["pooled"], FLOAT64_SUMS)
    weights = ["--model.prior", str(both), "--model.refine.prior", "1e4"]
    T = Run.load(erased(tmp_path, base, "kept", *weights, "--export", "[]")).edit.pooled
    assert T is not None
    moved = [
        float((T.double() @ e - e).norm() / e.norm()) for e in (cat, encode_both(pipeline, PROMPTS)[1][0].double())
    ]
    assert moved[0] < 0.01 < 0.1 < moved[1]  # a weight of 1e4 leaves a part in about 1e4 of the change
