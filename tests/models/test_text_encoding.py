"""What the pipelines of SD 1.x, SD 2.x and SDXL feed to their cross-attention, and the tokens that are summed of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from support.seeds import seeded
from support.tolerances import FLOAT32_SUMS, near
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mace_pl.data.captions import Captions
from mace_pl.methods.gram_statistics import read_statistics
from mace_pl.models.text_encoding import encoder_fingerprint, ignores_padding, token_counts
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.training.trainer import MaceTrainer

CAPTIONS = ["a photo of a ship", "a dog", "art", "a drawing of a bird in the street, a house and a cat", "a dog"]
CAPTIONS += ["a ship " * 60]  # longer than the encoder reads


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def networks(width: int, **more: Any) -> dict[str, Any]:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=width,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    )
    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=8)
    return {"unet": unet, "vae": vae, "scheduler": EulerDiscreteScheduler()}


@pytest.fixture(scope="module")
def tokenizers(toy_pipeline: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """The second pads with "!", as those of SD 2.x and SDXL do."""
    folder = toy_pipeline / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder, pad_token="!")


def ids(tokenizer: CLIPTokenizer, caption: str) -> Tensor:
    encoded = tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return encoded.input_ids


@pytest.fixture(scope="module")
def sd2(tokenizers: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[str], Tensor]]:
    """An SD 2.x-like pipeline, and its embeddings from the encoder that has the last layer still."""
    folder = tmp_path_factory.mktemp("sd2")
    tokenizer = tokenizers[1]
    torch.manual_seed(seeded(1))
    whole = CLIPTextModel(text_config(tokenizer, 40, layers=3, hidden_act="gelu")).eval()
    # diffusers stores the encoder without its last layer, so that its output is the penultimate layer's, normed
    shortened = CLIPTextModel(text_config(tokenizer, 40, layers=2, hidden_act="gelu"))
    shortened.load_state_dict({k: v for k, v in whole.state_dict().items() if "layers.2." not in k})
    StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=shortened,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **networks(40),
    ).save_pretrained(folder)

    def embed(caption: str) -> Tensor:
        hidden = whole(ids(tokenizer, caption), output_hidden_states=True).hidden_states[-2]
        norm = next(module for name, module in whole.named_modules() if name.endswith("final_layer_norm"))
        return norm(hidden)[0]

    return folder, embed


@pytest.fixture(scope="module")
def sdxl(tokenizers: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[str], Tensor]]:
    """An SDXL-like pipeline, and its embeddings from both encoders, side by side."""
    folder = tmp_path_factory.mktemp("sdxl")
    torch.manual_seed(seeded(2))
    first = CLIPTextModel(text_config(tokenizers[0], 24, layers=2)).eval()
    second = CLIPTextModelWithProjection(text_config(tokenizers[1], 40, layers=3, hidden_act="gelu")).eval()
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    StableDiffusionXLPipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=first,
        text_encoder_2=second,
        **networks(64, **added, projection_class_embeddings_input_dim=6 * 8 + 40),
    ).save_pretrained(folder)

    def embed(caption: str) -> Tensor:
        parts = [
            encoder(ids(tokenizer, caption), output_hidden_states=True).hidden_states[-2][0]
            for encoder, tokenizer in ((first, tokenizers[0]), (second, tokenizers[1]))
        ]
        return torch.cat(parts, dim=-1)

    return folder, embed


@pytest.fixture(scope="module")
def sd1(toy_pipeline: Path, tokenizers: Any) -> tuple[Path, Callable[[str], Tensor]]:
    encoder = CLIPTextModel.from_pretrained(toy_pipeline / "text_encoder").eval()
    return toy_pipeline, lambda caption: encoder(ids(tokenizers[0], caption)).last_hidden_state[0]


def plain_gram(embed: Callable[[str], Tensor], tokenizer: CLIPTokenizer, tokens: str) -> tuple[Tensor, int]:
    """The definition, one token at a time, and the number of tokens."""
    total, count = torch.zeros(()), 0
    for caption in CAPTIONS:
        with torch.no_grad():
            embeddings = embed(caption).double()
        end = ids(tokenizer, caption)[0].tolist().index(tokenizer.eos_token_id)
        for token in embeddings[: end + 1 if tokens == "caption" else None]:
            total, count = total + torch.outer(token, token), count + 1
    return total, count


def run(pretrained: Path, output: Path, source: Path, tokens: Any, model: PromptStatistics | None = None) -> None:
    source.write_text("\n".join(CAPTIONS), "utf-8")
    trainer = MaceTrainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    model = model or PromptStatistics(str(pretrained), str(output))
    trainer.cache(model, datamodule=Captions(sources=[str(source)], batch_size=2, tokens=tokens))


@pytest.mark.parametrize("tokens", ["all", "caption"])
@pytest.mark.parametrize(("kind", "width"), [("sd1", 32), ("sd2", 40), ("sdxl", 64)])
def test_statistics_are_of_what_cross_attention_sees(
    kind: str, width: int, tokens: str, tokenizers: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, embed = request.getfixturevalue(kind)
    model = PromptStatistics(str(folder), str(tmp_path / "prior.safetensors"))
    assert model.pipeline.unet is None and model.pipeline.vae is None  # never loaded
    run(folder, tmp_path / "prior.safetensors", tmp_path / "captions.txt", tokens, model)
    path = tmp_path / "prior.safetensors"
    gram, count, metadata = read_statistics(path, model.fingerprint, width, "file")
    expected, expected_count = plain_gram(embed, tokenizers[0], tokens)
    near(gram, expected, FLOAT32_SUMS)
    assert (count, metadata["token_choice"]) == (expected_count, tokens)


def test_padding_is_not_encoded_where_it_is_not_summed(sdxl: Any, tmp_path: Path) -> None:
    model = PromptStatistics(str(sdxl[0]), str(tmp_path / "prior.safetensors"))
    lengths: list[int] = []
    for encoder in model.encoders:
        encoder.register_forward_hook(lambda m, args, out: lengths.append(out.hidden_states[0].shape[1]))
    run(sdxl[0], tmp_path / "prior.safetensors", tmp_path / "captions.txt", "caption", model)
    batches = [["art", "a dog"], [CAPTIONS[0], CAPTIONS[3]], [CAPTIONS[5]]]  # by length
    longest = [int(token_counts(model.pipeline, batch).max()) for batch in batches]
    assert longest[0] < longest[1] < longest[2] == 77
    assert lengths[-6:] == [length for length in longest for _ in range(2)]  # both encoders


def test_an_encoder_that_sees_the_padding_gets_it(toy_pipeline: Path, tmp_path: Path) -> None:
    model = PromptStatistics(str(toy_pipeline), str(tmp_path / "prior.safetensors"))
    assert ignores_padding(model.pipeline)
    encode = model.pipeline.encode_prompt
    mixed: list[Tensor] = []

    def mixing(prompts: list[str], **options: Any) -> tuple[Tensor, None]:
        embeddings = encode(prompts, **options)[0]
        mixed.append(embeddings + embeddings.mean(1, keepdim=True))
        return mixed[-1], None

    model.pipeline.encode_prompt = mixing
    assert not ignores_padding(model.pipeline)
    run(toy_pipeline, Path(model.output), tmp_path / "captions.txt", "caption", model)
    tokenizer = model.pipeline.tokenizer

    def embed(caption: str) -> Tensor:
        return mixing([caption], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0][0]

    expected, _ = plain_gram(embed, tokenizer, "caption")
    gram = read_statistics(Path(model.output), model.fingerprint, 32, "file")[0]
    near(gram, expected, FLOAT32_SUMS)


def test_tokenizers_that_disagree_are_refused(sdxl: Any, tmp_path: Path) -> None:
    model = PromptStatistics(str(sdxl[0]), str(tmp_path / "prior.safetensors"))
    model.pipeline.tokenizer_2.model_max_length = 20
    with pytest.raises(ValueError, match="split captions differently. Use all"):
        token_counts(model.pipeline, CAPTIONS)


def test_the_fingerprint_is_the_same_under_either_spelling_of_the_names(toy_pipeline: Path) -> None:
    """Earlier versions of transformers begin all names of a CLIPTextModel with ``text_model.``, later ones none."""
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    fingerprint, inner = encoder_fingerprint(pipeline), pipeline.text_encoder
    inner = getattr(inner, "text_model", inner)
    spelt = []
    for wrapped in (False, True):
        pipeline.text_encoder = torch.nn.ModuleDict({"text_model": inner}) if wrapped else inner
        spelt.append(all(name.startswith("text_model.") for name in pipeline.text_encoder.state_dict()))
        assert encoder_fingerprint(pipeline) == fingerprint
    assert spelt == [False, True]
    with torch.no_grad():
        next(inner.parameters()).mul_(2)
    assert encoder_fingerprint(pipeline) != fingerprint
