"""Files of tensors: what was changed after it was written, and what cannot be used, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.finished import finished_run
from support.runs import content_hash

from mace_pl.commands.export import export_run
from mace_pl.errors import UserError
from mace_pl.files.artifacts import HASH, read_tensors, write_tensors
from mace_pl.methods.edit import ConceptSums
from mace_pl.run import Run


def change_a_value(file: Path) -> None:
    """One number in the tensors of a file: finite, as large as a fault of a disk may make it."""
    content = bytearray(file.read_bytes())
    with safe_open(str(file), framework="pt") as opened:
        name = sorted(opened.keys())[-1]
        wide = opened.get_tensor(name).dtype == torch.float64
    end = len(content) - len(content) % 4
    content[end - (8 if wide else 4) : end] = b"\x00" * (4 if wide else 0) + b"XXXX"
    file.write_bytes(content)


@pytest.mark.parametrize("form", ["lora", "pipeline", "refined"])
def test_an_edit_that_was_changed_is_not_exported(form: str, tmp_path: Path, toy_pipeline: Path) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    change_a_value(run / "edit.safetensors")
    output = tmp_path / ("out.safetensors" if form == "refined" else "out")
    with pytest.raises(UserError, match=r"edit\.safetensors is damaged: its values are not those that were written"):
        export_run(str(run), form, output=str(output))
    assert not output.exists()


def test_sums_that_were_changed_are_not_read(tmp_path: Path, toy_pipeline: Path) -> None:
    run = Run.load(finished_run(tmp_path / "run", toy_pipeline))
    eye = torch.eye(4, dtype=torch.float64)
    run.save_concept("ship", ConceptSums(eye, 2 * eye, 3 * eye, torch.tensor(3.0, dtype=torch.float64)), {})
    assert torch.equal(run.concept("ship")[0].F, eye)
    change_a_value(run.statistics_file("ship"))
    with pytest.raises(UserError, match=r"ship\.safetensors is damaged"):
        run.concept("ship")


@pytest.mark.parametrize("said", [None, {"modelspec.title": 'ship → "sea"', "modelspec.author": "A\x7fé\n\t\x01\\"}])
def test_equal_content_gives_equal_files(said: dict[str, str] | None, tmp_path: Path) -> None:
    """safetensors writes the entries of the header in another order each time."""
    tensors = {"ü.b": torch.arange(3), "a": torch.full((2, 2), 0.5), "c": torch.ones(0)}
    for number in range(8):  # of two entries in any order one in 256 files would not differ
        write_tensors(tmp_path / f"{number}.safetensors", tensors, "refined", {"target": 'Schiff "é"'}, said)
    first, *others = [(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)]
    assert all(other == first for other in others)
    loaded, file = load_file(tmp_path / "0.safetensors"), tmp_path / "0.safetensors"
    assert set(loaded) == set(tensors) and all(torch.equal(loaded[name], value) for name, value in tensors.items())
    with safe_open(str(file), framework="pt") as opened:
        header = opened.metadata()
    assert {name: value for name, value in header.items() if name not in ("format", "mace_pl", HASH)} == (said or {})
    assert header["format"] == "pt" and (said is None or header[HASH] == content_hash(file))


def test_values_that_a_narrow_type_cannot_hold_are_not_written(tmp_path: Path) -> None:
    large = {"R": torch.full((2, 2), 1e6)}
    write_tensors(tmp_path / "wide.safetensors", large, "refined", {"made": "here"})
    found, said = read_tensors(tmp_path / "wide.safetensors", "refined", "run")
    assert torch.equal(found["R"], large["R"]) and said["made"] == "here" and "sha256" not in said
    for more in (None, {"modelspec.title": "said"}):
        with pytest.raises(UserError, match=r"half\.safetensors is not written: values of R are not finite in float16"):
            write_tensors(tmp_path / "half.safetensors", {"R": large["R"].half()}, "refined", {}, more)
    assert [file.name for file in tmp_path.iterdir()] == ["wide.safetensors"]
