"""Statistics of captions through a real Trainer: values, ranks, files, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.forks import ranks
from support.tolerances import BFLOAT16_SUMS, FLOAT32_SUMS, FLOAT64_SUMS, NARROWER, above, close, near
from torch import Tensor

from mace_pl.data.captions import Captions
from mace_pl.files.artifacts import write_tensors
from mace_pl.methods.gram_statistics import read_statistics
from mace_pl.models.text_encoding import encode_prompts, encoder_fingerprint
from mace_pl.modules.caption_statistics import PromptStatistics, load_text_parts
from mace_pl.training.trainer import MaceTrainer

CAPTIONS = ["a photo of a ship", "a dog", "a photo of a ship", "the ground", "a cat in the sky"]
CAPTIONS += ["art", "a dog", "a dog", "a house on a blue background", "a bird in the street"]
# 7 distinct captions: uneven on two ranks
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": [{"caption": c} for c in CAPTIONS]}), encoding="utf-8")
    return str(path)


def run(toy: Path, source: str, output: Path, precision: Any = "32-true", batch_size: int = 3) -> dict[str, Tensor]:
    """The reduced sums of a run on one rank."""
    model = PromptStatistics(str(toy), str(output), overwrite=True)
    trainer = MaceTrainer(accelerator="cpu", devices=1, precision=precision, logger=False, enable_progress_bar=False)
    trainer.cache(model, datamodule=Captions(sources=[source], batch_size=batch_size))
    return model.statistics


def plain_gram(pipeline: Any) -> Tensor:
    """[D, D]: the definition, one caption and one token at a time, nothing counted twice."""
    gram = torch.zeros(32, 32, dtype=torch.float64)
    for caption in CAPTIONS:
        for token in encode_prompts(pipeline, [caption])[0].double():
            gram += torch.outer(token, token)
    return gram


def checksums(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_sum_equals_a_plain_loop_and_the_input_is_unchanged(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    before = checksums(toy_pipeline)
    output = tmp_path / "new" / "prior.safetensors"
    run(toy_pipeline, source, output)
    pipeline = load_text_parts(str(toy_pipeline))
    fingerprint = encoder_fingerprint(pipeline)
    gram, tokens, metadata = read_statistics(output, fingerprint, 32, "prior")
    close(gram, plain_gram(pipeline), FLOAT32_SUMS)
    assert tokens == len(CAPTIONS) * 77
    assert (metadata["captions"], metadata["distinct_captions"], metadata["precision"]) == (10, 7, "32-true")
    assert metadata["sources"][0]["sha256"] == hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert {"date", "version"} <= metadata.keys()
    assert checksums(toy_pipeline) == before


def test_double_precision_equals_a_plain_loop(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    pipeline = load_text_parts(str(toy_pipeline))
    pipeline.text_encoder.double()
    result = run(toy_pipeline, source, tmp_path / "prior.safetensors", precision="64-true")
    close(result["gram"], plain_gram(pipeline), FLOAT64_SUMS)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_narrow_precision_still_sums_in_float64(
    toy_pipeline: Path, source: str, tmp_path: Path, precision: str
) -> None:
    output = tmp_path / "prior.safetensors"
    result = run(toy_pipeline, source, output, precision=precision)
    pipeline = load_text_parts(str(toy_pipeline))
    fingerprint = encoder_fingerprint(pipeline)  # of the stored weights, not of those cast for the run
    gram, _, metadata = read_statistics(output, fingerprint, 32, "prior")
    assert gram.dtype == result["gram"].dtype == torch.float64
    assert metadata["precision"] == precision
    whole = plain_gram(pipeline)
    near(gram, whole, BFLOAT16_SUMS)
    above((gram - whole).norm() / whole.norm(), NARROWER)  # the embeddings are bfloat16, and only they


def test_a_second_run_starts_from_zero(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    model = PromptStatistics(str(toy_pipeline), str(tmp_path / "prior.safetensors"), overwrite=True)
    data = Captions(sources=[source])
    sums = []
    for _ in range(2):
        trainer = MaceTrainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
        trainer.cache(model, datamodule=data)
        sums.append(model.statistics["gram"].clone())
    torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=0)


def test_two_ranks_equal_one(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    run(toy_pipeline, source, one, precision="64-true")
    first, second = ranks(Path(__file__).with_name("cache_worker.py"), [str(toy_pipeline), source, str(two)])
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert [one.stdout.count("Statistics of captions") for one in (first, second)] == [1, 0]  # one summary
    fingerprint = encoder_fingerprint(load_text_parts(str(toy_pipeline)))
    gram_1, tokens_1, _ = read_statistics(one, fingerprint, 32, "one")
    gram_2, tokens_2, metadata = read_statistics(two, fingerprint, 32, "two")
    assert (tokens_2, metadata["captions"], metadata["processes"]) == (tokens_1, len(CAPTIONS), 2)
    near(gram_2, gram_1, FLOAT64_SUMS)


def test_existing_output_is_refused_before_the_work(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    output = tmp_path / "prior.safetensors"
    output.write_bytes(b"kept")
    trainer = MaceTrainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match="--model.overwrite true"):
        trainer.cache(PromptStatistics(str(toy_pipeline), str(output)), datamodule=Captions(sources=[source]))
    assert output.read_bytes() == b"kept"


@pytest.mark.parametrize("name", ["prior.pt", "folder.safetensors"])
def test_bad_output_is_refused(toy_pipeline: Path, source: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    model = PromptStatistics(str(toy_pipeline), str(tmp_path / name), overwrite=True)
    trainer = MaceTrainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match="output="):
        trainer.cache(model, datamodule=Captions(sources=[source]))


def test_weights_that_are_not_finite_are_refused(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(toy_pipeline, broken)
    weights = broken / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    next(t for name, t in sorted(tensors.items()) if name.endswith("final_layer_norm.weight")).fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite"):
        run(broken, source, tmp_path / "prior.safetensors")
    assert not (tmp_path / "prior.safetensors").exists()


def test_folders_without_a_pipeline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrained=.*model_index\.json"):
        PromptStatistics(str(tmp_path / "none"), "x.safetensors")
    (tmp_path / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="model_index.json is not a valid JSON file"):
        PromptStatistics(str(tmp_path), "x.safetensors")
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match="its part text_encoder has no weights"):
        PromptStatistics(str(tmp_path), "x.safetensors")


def written(path: Path, gram: Tensor, **changes: Any) -> Path:
    """A statistics file with one thing changed."""
    kind = changes.pop("kind", "statistics")
    write_tensors(path, {"gram": gram}, kind, {"encoder": "abc", "tokens": 77, **changes})
    return path


def test_read_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    eye = torch.eye(4, dtype=torch.float64)
    gram, tokens, _ = read_statistics(written(path, eye), "abc", 4, "prior")
    torch.testing.assert_close(gram, eye, rtol=0, atol=0)
    assert tokens == 77
    with pytest.raises(ValueError, match=r"prior: .* another text encoder"):
        read_statistics(path, "abd", 4, "prior")
    with pytest.raises(ValueError, match=r"shape \(4, 4\)"):
        read_statistics(path, "abc", 5, "prior")
    refused = [
        (eye[:3], {}, "shape"),
        (eye[0], {}, "shape"),
        (eye.float(), {}, r"torch\.float32"),
        (eye * float("nan"), {}, "not finite"),
        (eye, {"tokens": 0}, "counts 0 tokens"),
        (eye, {"kind": "edit"}, "holds 'edit'"),
    ]
    for tensor, changes, message in refused:
        with pytest.raises(ValueError, match=message):
            read_statistics(written(path, tensor, **changes), "abc", 4, "prior")


def test_read_refuses_truncated_files_and_pickles(tmp_path: Path) -> None:
    path = written(tmp_path / "prior.safetensors", torch.eye(4, dtype=torch.float64))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated"):
        read_statistics(path, "abc", 4, "prior")
    torch.save({"gram": torch.eye(4)}, path)
    with pytest.raises(ValueError, match="Pickles"):
        read_statistics(path, "abc", 4, "prior")
    with pytest.raises(ValueError, match="is no file"):
        read_statistics(tmp_path / "none.safetensors", "abc", 4, "prior")
