"""Statistics do not depend on the number of ranks, whatever the number of captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.forks import forked
from support.tolerances import FLOAT64_SUMS, near

from mace_pl.data.captions import Captions
from mace_pl.methods.gram_statistics import read_statistics
from mace_pl.models.text_encoding import encode_prompts, encoder_fingerprint
from mace_pl.modules.caption_statistics import PromptStatistics, load_text_parts
from mace_pl.training.trainer import MaceTrainer

SIZES = (1, 7, 301)  # fewer than ranks, uneven, and many batches
WORDS = ["ship", "dog", "cat", "bird", "house", "sky", "street", "ground", "painter", "person", "photo"]


def captions(size: int) -> list[str]:
    """``size`` captions, some of them twice."""
    return [f"a {WORDS[i % 11]} and a {WORDS[i % 7]} in the {WORDS[i % 3]}" for i in range(size)]


@pytest.fixture(scope="module")
def folder(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all sizes with their statistics from one, two and three ranks."""
    folder = tmp_path_factory.mktemp("shares")
    for size in SIZES:
        (folder / f"{size}.txt").write_text("\n".join(captions(size)), "utf-8")
        trainer = MaceTrainer(
            accelerator="cpu", devices=1, precision="64-true", logger=False, enable_progress_bar=False
        )
        model = PromptStatistics(str(toy_pipeline), str(folder / f"{size}-1.safetensors"))
        trainer.cache(model, datamodule=Captions(sources=[str(folder / f"{size}.txt")]))
    done = forked(Path(__file__).with_name("shares_worker.py"), [str(toy_pipeline), str(folder), *map(str, SIZES)])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_no_caption_is_dropped_or_counted_twice(toy_pipeline: Path, folder: Path, size: int) -> None:
    pipeline = load_text_parts(str(toy_pipeline))
    fingerprint = encoder_fingerprint(pipeline)
    pipeline.text_encoder.double()
    embeddings = encode_prompts(pipeline, captions(size))  # every caption, those that occur twice too
    expected = torch.einsum("ntd,nte->de", embeddings, embeddings)
    for ranks in (1, 2, 3):
        gram, tokens, metadata = read_statistics(folder / f"{size}-{ranks}.safetensors", fingerprint, 32, "file")
        near(gram, expected, FLOAT64_SUMS)
        assert (metadata["captions"], metadata["processes"], tokens) == (size, ranks, size * 77)
        assert metadata["distinct_captions"] == len(set(captions(size)))
