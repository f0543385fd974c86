"""Interrupted runs resume, and end with the same numbers; what does not belong to them is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.forks import forked
from support.runs import leftover
from support.tolerances import FLOAT32_SUMS, FLOAT64_SUMS, close, near

from mace_pl.data.captions import Captions
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.training.trainer import MaceTrainer

CAPTIONS = [f"a {a} in the {b}" for a in ("ship", "dog", "cat", "bird", "house", "person") for b in "abcdefghijklmnopq"]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join([*CAPTIONS, *CAPTIONS[::3]]), "utf-8")
    return str(path)


class CutOff(Exception):  # noqa: N818 - a signal
    """The run ends here."""


def run(toy: Path, source: str, output: Path, stop_after: int | None = None, **changes: Any) -> PromptStatistics:
    """A run with ``changes`` of its settings, cut off after so many batches."""
    data = {"batch_size": 3, "sources": [source]} | changes.pop("data", {})
    model = PromptStatistics(str(toy), str(output), save_every=changes.pop("save_every", 4))
    trainer = MaceTrainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, **changes)
    if stop_after is not None:
        step, steps = model.predict_step, 0

        def cut(batch: Any, batch_idx: int) -> int:
            nonlocal steps
            steps += 1
            if steps > stop_after:
                raise CutOff
            return step(batch, batch_idx)

        model.predict_step = cut  # type: ignore[method-assign]
    trainer.cache(model, datamodule=Captions(**data))
    return model


def partial_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.partial")) + sorted(p.name for p in folder.glob(".*.partial"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_runs_go_on_and_end_with_the_same_bits(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    done = forked(Path(__file__).with_name("cut_worker.py"), [str(toy_pipeline), source, str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert partial_files(tmp_path) == []
    whole = run(toy_pipeline, source, tmp_path / "whole.safetensors").statistics["gram"]
    for processes in (1, 2):
        encoded = [int(path.read_text()) for path in sorted(tmp_path.glob(f"cut{processes}.encoded.*"))]
        assert len(encoded) == processes
        assert 0 < sum(encoded) < len(CAPTIONS) - 23  # the last run did not start again
        gram = load_file(tmp_path / f"cut{processes}.safetensors")["gram"]
        # bit for bit; the shares of two ranks add up in another order than one
        if processes == 1 and torch.get_num_threads() == 1:
            assert torch.equal(gram, whole)
        near(gram, whole, FLOAT64_SUMS)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 17, 33])
def test_a_run_that_fails_anywhere_goes_on(toy_pipeline: Path, source: str, tmp_path: Path, stop_after: int) -> None:
    output = tmp_path / "cut.safetensors"
    with pytest.raises(CutOff):
        run(toy_pipeline, source, output, stop_after)
    assert not output.exists()
    assert partial_files(tmp_path) == (["cut.safetensors.0-of-1.partial"] if stop_after > 1 else [])
    leftover(tmp_path / "cut.safetensors.0-of-1.partial").write_bytes(b"killed while it was written")
    gram = run(toy_pipeline, source, output).statistics["gram"]
    whole = run(toy_pipeline, source, tmp_path / "whole.safetensors").statistics["gram"]
    torch.testing.assert_close(gram, whole, rtol=0, atol=0)
    assert partial_files(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"limit": 90}}, "other captions"),
        ({"data": {"tokens": "caption"}}, r"other data\.tokens"),
        ({"precision": "64-true"}, r"other trainer\.precision"),
        ({"data": {"limit": 90}, "precision": "64-true"}, r"other captions and other trainer\.precision"),
    ],
)
def test_a_partial_file_of_another_run_is_refused(
    toy_pipeline: Path, source: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    output = tmp_path / "cut.safetensors"
    with pytest.raises(CutOff):
        run(toy_pipeline, source, output, 9)
    before = (tmp_path / "cut.safetensors.0-of-1.partial").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(toy_pipeline, source, output, **changes)
    assert (tmp_path / "cut.safetensors.0-of-1.partial").read_bytes() == before
    assert not output.exists()


def test_partial_files_of_another_encoder_or_number_of_ranks_are_refused(
    toy_pipeline: Path, source: str, tmp_path: Path
) -> None:
    output = tmp_path / "cut.safetensors"
    with pytest.raises(CutOff):
        run(toy_pipeline, source, output, 9)
    model = PromptStatistics(str(toy_pipeline), str(output))
    model.fingerprint = "0" * 64
    trainer = MaceTrainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match="other text encoder"):
        trainer.cache(model, datamodule=Captions(sources=[source]))
    partial = tmp_path / "cut.safetensors.0-of-1.partial"
    # as two ranks leave it
    two = partial.read_bytes().replace(b'\\"number of ranks\\": 1', b'\\"number of ranks\\": 2')
    partial.with_name("cut.safetensors.1-of-2.partial").write_bytes(two)
    with pytest.raises(ValueError, match="other number of ranks"):
        run(toy_pipeline, source, output)
    partial.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no readable safetensors file"):
        run(toy_pipeline, source, output)


def test_other_batches_may_finish_a_run(toy_pipeline: Path, source: str, tmp_path: Path) -> None:
    output = tmp_path / "cut.safetensors"
    with pytest.raises(CutOff):
        run(toy_pipeline, source, output, 9)
    gram = run(toy_pipeline, source, output, data={"batch_size": 16}, save_every=50).statistics["gram"]
    whole = run(toy_pipeline, source, tmp_path / "whole.safetensors").statistics["gram"]
    close(gram, whole, FLOAT32_SUMS)


def test_a_bad_interval_is_refused(toy_pipeline: Path) -> None:
    with pytest.raises(ValueError, match="save_every=0"):
        PromptStatistics(str(toy_pipeline), "x.safetensors", save_every=0)
