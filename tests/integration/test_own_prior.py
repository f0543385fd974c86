"""``prior: auto`` in whole runs: a model's own statistics, taken, written down, and found where the model is moved."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from support.runs import config, exit_message, statistics
from support.tolerances import FLOAT32_EDIT, close

from mace_pl.cli import erase_main
from mace_pl.concepts.preservation import OWN_PRIOR, GivenWeights, prior_of
from mace_pl.models.source import Source
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.run import Run

SHIP = [{"target": "ship", "anchor": "ground", "kind": "object"}]
SUMS = 50 * torch.diag(torch.linspace(1, 3, 32, dtype=torch.float64))
ALONE = ["--model.method", "MaceRefinement", "--report_seeds", "0", "--save_pipeline", "false"]
NOTHING = [GivenWeights()] * 2


@pytest.fixture
def model(toy_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline with statistics in its folder."""
    folder = Path(shutil.copytree(toy_pipeline, tmp_path / "model"))
    (folder / OWN_PRIOR).parent.mkdir()
    encoder = encoder_fingerprint(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))
    statistics(folder / OWN_PRIOR, encoder, SUMS)
    return folder


def without_weights(folder: Path, pipeline: Path, name: str) -> list[str]:
    """The options of a run that is left to choose its weights."""
    args = config(folder, pipeline, name, SHIP)
    content = yaml.safe_load((folder / f"{name}.yaml").read_text())
    del content["model"]["refine"], content["model"]["fuse"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return [*args, *ALONE, "--model.domain_names", "[cat]"]


def edited(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "refined.safetensors")


def test_the_models_own_statistics_are_those_of_a_file_that_is_named(model: Path, tmp_path: Path) -> None:
    erase_main(without_weights(tmp_path, model, "own"))
    named = str(shutil.copy(model / OWN_PRIOR, tmp_path / "named.safetensors"))
    erase_main([*without_weights(tmp_path, model, "named"), "--model.prior", named])
    erase_main([*without_weights(tmp_path, model, "none"), "--model.prior", "null"])
    taken = {name: Run.load(tmp_path / name).config["model"] for name in ("own", "named", "none")}
    assert [taken[name]["prior"] for name in taken] == [str(model / OWN_PRIOR), named, None]
    own, other, without = (edited(tmp_path / name) for name in taken)
    for name, weight in own.items():
        close(other[name], weight, FLOAT32_EDIT)
    assert any(not torch.equal(without[name], weight) for name, weight in own.items())
    repeated = tmp_path / "own" / "config.yaml"
    erase_main(["fit", "--config", str(repeated), "--output_dir", str(tmp_path / "repeated")])
    assert all(torch.equal(edited(tmp_path / "repeated")[name], weight) for name, weight in own.items())


def test_statistics_move_with_the_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    erase_main(without_weights(tmp_path, Path("model"), "run"))
    assert Run.load("run").config["model"]["prior"] == f"model/{OWN_PRIOR}"
    model.rename(tmp_path / "moved")
    fuse = ["fuse", "--run", "run", "--save_pipeline", "false", "--output_dir"]
    assert "model.pretrained=model does not exist" in exit_message([*fuse, "lost"], capsys)
    erase_main([*fuse, "fused", "--pretrained", "moved"])
    assert Run.load("fused").config["model"]["prior"] == f"moved/{OWN_PRIOR}"
    for name, weight in edited(Path("run")).items():
        close(edited(Path("fused"))[name], weight, FLOAT32_EDIT)
    (tmp_path / "moved" / OWN_PRIOR).unlink()
    assert "model.prior=moved/" in exit_message([*fuse, "again", "--pretrained", "moved"], capsys)


def test_they_are_taken_where_weights_are_left_to_the_run_or_one_is_for_them(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = encoder_fingerprint(StableDiffusionPipeline.from_pretrained(model, safety_checker=None))
    own, source = str(model / OWN_PRIOR), Source(model)

    def taken(prior: str | None, weights: list[GivenWeights], by_number: bool = True, encoder: str = encoder) -> object:
        return prior_of(prior, str(model), source, weights, by_number, encoder)

    assert taken("auto", NOTHING) == own and taken("file", NOTHING) == "file" and taken(None, NOTHING) is None
    assert taken("auto", NOTHING, by_number=False) is None, "the method has no weight for it"
    assert taken("auto", [GivenWeights(identity=1.0), GivenWeights()]) is None, "weights without one for it"
    assert taken("auto", [GivenWeights(), GivenWeights(prior=1.0)], by_number=False) == own
    assert taken("auto", [GivenWeights(absolute=False)] * 2) is None, "no weight that follows the number is relative"
    assert prior_of("auto", "one.safetensors", Source(file=model), NOTHING, True, encoder) is None
    with caplog.at_level("INFO", logger="mace_pl"):
        assert taken("auto", NOTHING, encoder="other") is None
    assert caplog.messages == [f"model.prior: {own} is of another text encoder than the model has now, and is left out"]
    (model / OWN_PRIOR).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"model\.prior: .*prior\.safetensors.* --model\.prior null goes without"):
        taken("auto", NOTHING)
