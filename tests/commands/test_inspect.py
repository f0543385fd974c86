"""What ``inspect`` prints and plots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.runs import exit_message
from support.seeds import seeded
from support.tolerances import BY_HAND, FLOAT64_SUMS, close

from mace_pl.cli import erase_main
from mace_pl.commands.inspect import inspect_statistics, spectrum
from mace_pl.files.artifacts import write_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Sums of 77 tokens with eigenvalues 8, 4, 2 and 0 in a turned basis."""
    turn, _ = torch.linalg.qr(
        torch.randn(4, 4, generator=torch.Generator().manual_seed(seeded(0)), dtype=torch.float64)
    )
    gram = turn @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 0.0], dtype=torch.float64)) @ turn.T
    metadata = {
        "encoder": "ab" * 32,
        "captions": 1,
        "distinct_captions": 1,
        "tokens": 77,
        "token_choice": "all",
        "sources": [{"source": "mine.txt", "sha256": "cd" * 32, "captions": 1, "limit": None}],
        "precision": "32-true",
        "processes": 1,
    }
    write_tensors(tmp_path / "prior.safetensors", {"gram": (gram + gram.T) / 2}, "statistics", metadata)
    return tmp_path / "prior.safetensors"


def test_spectrum_of_known_matrices(file: Path) -> None:
    found = inspect_statistics(str(file), plot=False)
    close(found.eigenvalues, torch.tensor([8.0, 4.0, 2.0, 0.0], dtype=torch.float64), FLOAT64_SUMS)
    assert (found.rank, found.condition) == (3, float("inf"))
    close(found.trace, 14, FLOAT64_SUMS)
    full = spectrum(torch.diag(torch.tensor([1.0, 5.0, 0.5])))
    assert full.rank == 3
    close([full.condition, full.trace], [10, 6.5], BY_HAND)


def test_provenance_is_printed_and_eigenvalues_are_plotted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    erase_main(["inspect", str(file)])
    printed = capsys.readouterr().out
    assert "ab" * 32 in printed.replace("│", "").replace(" ", "").replace("\n", "")
    for part in ("mine.txt", "cd" * 8, "3 of 4", "inf", "32-true", "0.1818"):  # 14/77
        assert part in printed
    with Image.open(file.with_suffix(".png")) as image:
        assert image.format == "PNG" and image.width > 300


def test_nothing_is_written_into_the_folder_of_a_model(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "model" / "statistics" / file.name
    own.parent.mkdir(parents=True)
    file.rename(own)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    erase_main(["inspect", str(own)])
    assert Path("prior.png").is_file() and not own.with_suffix(".png").exists()


def test_a_plot_is_never_overwritten_silently(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = file.with_suffix(".png")
    image.write_bytes(b"kept")
    message = exit_message(["inspect", str(file)], capsys)
    assert "--overwrite true" in message and "--plot false" in message
    assert image.read_bytes() == b"kept"
    erase_main(["inspect", str(file), "--plot", "false"])
    erase_main(["inspect", str(file), "--plot", str(file.with_name("other.png"))])
    assert image.read_bytes() == b"kept"
    assert file.with_name("other.png").is_file()
    erase_main(["inspect", str(file), "--overwrite", "true"])
    assert image.read_bytes() != b"kept"
    assert "must end with .png" in exit_message(["inspect", str(file), "--plot", "plot.jpg"], capsys)


def test_sums_with_weights_or_without_a_count_have_no_trace_per_token(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = file.with_name("other.safetensors")
    erase_main(
        ["merge", str(file), str(file), "--output", str(other), "--weights", "[1, 2]", "--allow_overlap", "true"]
    )
    erase_main(["inspect", str(other), "--plot", "false"])
    printed = capsys.readouterr().out
    assert "weighted sum" in printed and "weight 2.0" in printed and "trace per token" not in printed
    assert "is no file" in exit_message(["inspect", str(file.with_name("none.safetensors"))], capsys)
