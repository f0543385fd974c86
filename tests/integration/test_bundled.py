"""The bundled model: complete, small, loadable by other programs, and it generates what it is asked for."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from support.tolerances import FLOAT32_PASS, close
from transformers import CLIPModel

from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.files.owned import foreign_file
from mace_pl.files.paths import resolve
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.sampling import generate
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.pretraining.captions import read_rows

FOLDER = resolve("checkpoints/emoji")
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STANDARD = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"}

pytestmark = pytest.mark.bundled


def config(part: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((FOLDER / part).read_text())
    return loaded


def test_it_is_small_and_of_standard_parts() -> None:
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 48 * 2**20
    assert config("model_index.json")["_class_name"] == "StableDiffusionPipeline"
    unet = config("unet/config.json")
    blocks = {*unet["down_block_types"], *unet["up_block_types"], unet["mid_block_type"]}  # type: ignore[misc]
    assert blocks <= STANDARD
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (FOLDER / "tokenizer" / name).is_file()
    assert "wizard" in {row["concept"] for row in read_rows(resolve("mace_pl/pretraining/emoji/metadata.jsonl"))}
    assert (FOLDER / "README.md").read_text(encoding="utf-8").startswith("---\n")


@pytest.mark.parametrize("part", ["clip", "judge", "text_encoder", "tokenizer", "unet", "vae"])
def test_its_training_may_replace_what_the_project_wrote(part: str) -> None:
    assert foreign_file(FOLDER / part) is None


def test_weights_are_half_precision_and_finite() -> None:
    files = sorted(FOLDER.rglob("*.safetensors"))
    weights = [f for f in files if f.parent.name in {"unet", "vae", "text_encoder", "clip", "judge"}]
    assert len(weights) == 5
    for file in weights:
        for name, tensor in load_file(file).items():
            assert tensor.dtype in (torch.float16, torch.int64), name
            assert bool(torch.isfinite(tensor).all()), name


def test_the_scorer_reads_with_the_pipelines_text_encoder() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    clip = CLIPModel.from_pretrained(FOLDER / "clip", dtype=torch.float32)
    ids = pipeline.tokenizer(["a photo of a ship"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        own, scorers = pipeline.text_encoder(ids)[0], clip.text_model(input_ids=ids).last_hidden_state
    close(own, scorers, FLOAT32_PASS)


def test_it_generates_the_ten_names() -> None:
    pipeline = load_pipeline("checkpoints/emoji")
    images = generate(pipeline, [f"a photo of a {name}" for name in TEN], [0] * 10, steps=15)
    seen = ClipClassifier("checkpoints/emoji/clip", TEN)(images).argmax(-1).tolist()
    right = sum(i == index for i, index in enumerate(seen))
    assert right >= 8, f"{right} of 10; measured over 40 seeds it is above 9"


def test_the_shipped_statistics_are_its_own() -> None:
    file = FOLDER / "statistics" / "prior.safetensors"
    from mace_pl.methods.gram_statistics import read_statistics

    fingerprint = encoder_fingerprint(load_pipeline("checkpoints/emoji"))
    gram, tokens, meta = read_statistics(Path(file), fingerprint, 128, "prior")
    assert gram.shape == (128, 128) and tokens == 77 * meta["captions"]
