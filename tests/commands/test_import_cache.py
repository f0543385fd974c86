"""Caches of the published layout, made here by plain loops, become statistics; what does not fit is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.runs import exit_message
from support.tolerances import SYMMETRIC, below
from torch import Tensor

from mace_pl.cli import erase_main
from mace_pl.methods.gram_statistics import read_statistics
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.modules.concept_erasure import ConceptErasure

CAPTIONS = ["a photo of a ship", "a dog", "art in the sky", "a house on a blue background"]


@pytest.fixture(scope="module")
def pipeline(toy_pipeline: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)


@pytest.fixture(scope="module")
def published(pipeline: Any) -> dict[str, Tensor]:
    """The layout by its definition: every token of every caption through every matrix, in float32."""
    matrices = []
    for name, module in pipeline.unet.named_modules():
        if name.endswith("attn2"):
            matrices += [module.to_k.weight.detach(), module.to_v.weight.detach()]
    sums: dict[str, Tensor] = {}
    for caption in CAPTIONS:
        inputs = pipeline.tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            embeddings = pipeline.text_encoder(inputs.input_ids).last_hidden_state[0]
        for i, W in enumerate(matrices):
            for e in embeddings:
                sums[f"{i}_for_mat1"] = sums.get(f"{i}_for_mat1", 0) + torch.outer(W @ e, e)
                sums[f"{i}_for_mat2"] = sums.get(f"{i}_for_mat2", 0) + torch.outer(e, e)
    return sums


def importing(cache: Any, toy: Path, folder: Path) -> list[str]:
    """The command that imports ``cache``."""
    torch.save(cache, folder / "cache.pt")
    output = ["--output", str(folder / "prior.safetensors")]
    return ["import-cache", str(folder / "cache.pt"), "--model.pretrained", str(toy), *output]


def test_a_published_cache_becomes_statistics(
    toy_pipeline: Path, pipeline: Any, published: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    erase_main(importing(published, toy_pipeline, tmp_path))
    printed = capsys.readouterr().out
    assert f"{len(published) // 2} matrices fit (UNet order)" in printed
    fingerprint = encoder_fingerprint(pipeline)
    gram, tokens, metadata = read_statistics(tmp_path / "prior.safetensors", fingerprint, 32, "file")
    P = published["0_for_mat2"].double()
    torch.testing.assert_close(gram, (P + P.T) / 2, rtol=0, atol=0)
    assert tokens is None and metadata["captions"] is None
    below(metadata["imported"]["deviation"], SYMMETRIC)
    assert metadata["imported"]["matrices"] == len(published) // 2
    # and it is used like one of our own
    model = ConceptErasure(str(toy_pipeline), prior=str(tmp_path / "prior.safetensors"))
    torch.testing.assert_close(model.wanted.refine.prior, gram, rtol=0, atol=0)
    erase_main(["inspect", str(tmp_path / "prior.safetensors")])
    assert "number of tokens unknown" in capsys.readouterr().out


def test_another_order_of_the_matrices_is_recognised(
    toy_pipeline: Path, published: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(published) // 2
    order = [*range(0, count, 2), *range(1, count, 2)]  # all keys, then all values
    other = {f"{i}_for_mat{m}": published[f"{j}_for_mat{m}"] for i, j in enumerate(order) for m in (1, 2)}
    erase_main(importing(other, toy_pipeline, tmp_path))
    assert "another order" in capsys.readouterr().out


def changed(published: dict[str, Tensor], **tensors: Any) -> dict[str, Any]:
    """A copy with entries replaced, or left out where they are None."""
    names = {name.removeprefix("m"): tensor for name, tensor in tensors.items()}
    return {k: v for k, v in (published | names).items() if v is not None}


def test_caches_that_do_not_fit_are_refused(
    toy_pipeline: Path, published: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    P, WP = published["1_for_mat2"], published["1_for_mat1"]
    last = len(published) // 2 - 1
    none: dict[str, Any] = {f"m{last}_for_mat1": None, f"m{last}_for_mat2": None}
    skewed = {f"m{i}_for_mat2": P + torch.triu(P, 1) for i in range(last + 1)}
    negative = {f"m{i}_for_mat2": P - P.trace() * torch.eye(32) for i in range(last + 1)}
    narrow = {f"m{i}_for_mat2": torch.eye(16) for i in range(last + 1)}
    for cache, message in [
        ([1, 2], "holds list"),
        ({}, "holds dict"),
        (changed(published, m1_for_mat2=None), "has no 1_for_mat2"),
        (changed(published, m1_for_mat1=None), "has no 1_for_mat1"),
        (changed(published, m0_for_mat1=None, m0_for_mat2=None), "has no 0_for_mat1"),
        (published | {"lambda": P}, "an entry 'lambda'"),
        (changed(published, m1_for_mat2=P[0]), "an entry '1_for_mat2' that is no matrix"),
        (changed(published, m1_for_mat2=P * float("nan")), "not finite"),
        (changed(published, **none), f"it has {last} matrices, model.pretrained has {last + 1}"),
        (changed(published, m1_for_mat2=P * 1.01), "1_for_mat2 deviates by 1.00e-02"),
        (changed(published, **skewed), "or from its own transpose"),
        (changed(published, **negative), "no sum of e eᵀ"),
        (changed(published, **narrow), "has shape (16, 16)"),
        (changed(published, m1_for_mat1=WP.flip(0)), "1_for_mat1 deviates by"),
        (changed(published, m1_for_mat1=published["0_for_mat1"]), "0_for_mat1 and 1_for_mat1 are W P of the same"),
    ]:
        assert message in exit_message(importing(cache, toy_pipeline, tmp_path), capsys)
        assert not (tmp_path / "prior.safetensors").exists()


def test_code_in_a_cache_is_never_run(toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "made"
    command = importing({}, toy_pipeline, tmp_path)

    class Made:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (target,)

    torch.save({"0_for_mat1": Made()}, tmp_path / "cache.pt")
    assert "cannot be loaded as tensors only" in exit_message(command, capsys)
    (tmp_path / "cache.pt").write_bytes(pickle.dumps({"a": Made()}))
    assert "cannot be loaded as tensors only" in exit_message(command, capsys)
    (tmp_path / "cache.pt").write_bytes(b"no pickle")
    assert "cannot be loaded as tensors only" in exit_message(command, capsys)
    assert not target.exists()
    assert "is no file" in exit_message([command[0], str(tmp_path / "none.pt"), *command[2:]], capsys)


def test_sums_are_not_written_into_the_base_model(
    toy_pipeline: Path, published: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = importing(published, toy_pipeline, tmp_path)
    inside = toy_pipeline / "prior.safetensors"
    message = exit_message([*words[:-1], str(inside)], capsys)
    assert f"output={inside} lies in the base model" in message and not inside.exists()
