"""The folder of a run: what is read is what was written, and a fused run is one like a fitted one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from support.families import family
from support.runs import CONCEPTS, checksums, config, exit_message
from support.tolerances import FLOAT32_EDIT, MOVED, above, close

from mace_pl.cli import erase_main
from mace_pl.commands.eval_unlearn import Technique
from mace_pl.commands.export import export_run
from mace_pl.commands.fuse import fuse_run
from mace_pl.errors import UserError
from mace_pl.export.single_file import single_file, unet_names
from mace_pl.files.owned import refuse_inputs
from mace_pl.methods.edit import ConceptSums
from mace_pl.models.base_model import base_hashes
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.source import Source
from mace_pl.run import Run, inputs_of


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    erase_main([*config(folder, toy_pipeline, "run"), "--save_pipeline", "false", "--report_seeds", "0"])
    return folder / "run"


@pytest.fixture(scope="module")
def fused(run: Path) -> Path:
    """Without the painter, the ship half erased, by a weight of its own."""
    more = {"drop": ["painter"], "weights": {"ship": 0.5}, "refine": {"identity": 2.0}, "save_pipeline": False}
    return fuse_run(str(run), str(run.parent / "fused"), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def other_base(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet of the same shape and of other weights."""
    folder = Path(shutil.copytree(toy_pipeline, tmp_path_factory.mktemp("other") / "base"))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.conv_out.bias.data.add_(1)
    unet.save_pretrained(folder / "unet")
    return folder


def test_what_is_read_is_what_was_written(run: Path, fused: Path, toy_pipeline: Path) -> None:
    found, again = Run.load(run), Run.load(fused)
    hashes = base_hashes(load_pipeline(str(toy_pipeline)))
    for one in (found, again):
        assert (one.base.pretrained, one.base.kinds) == (str(toy_pipeline), {"pretrained": "path"})
        assert {part: getattr(one.base, part) for part in hashes} == hashes
        assert one.seed == found.config["seed_everything"] and one.config["output_dir"] == str(one.folder)
        own = load_file(one.folder / "refined.safetensors")
        assert all(torch.equal(own[name], value) for name, value in one.refined(own).items())
    assert found.concepts == CONCEPTS and found.fused is None
    assert again.targets == ["ship", "dog"] and again.fused is not None
    assert (again.fused.method, again.fused.weights) == ("fused", {"ship": 0.5})
    assert again.fused.refine["identity"] == again.config["model"]["refine"]["identity"] == 2.0
    assert found.metrics.is_file() and not again.report.exists()


def test_a_fused_run_is_exported(fused: Path, tmp_path: Path) -> None:
    written = load_file(export_run(str(fused), "refined", output=str(tmp_path / "out.safetensors")))
    own = load_file(fused / "refined.safetensors")
    assert own.keys() == written.keys()
    for name in own:
        close(written[name], own[name], FLOAT32_EDIT)
    assert (export_run(str(fused), "lora", rank=1, output=str(tmp_path / "lora")) / "fused.safetensors").is_file()


def test_a_fused_run_is_fused_again(run: Path, fused: Path, tmp_path: Path) -> None:
    """As it is, with other strengths, which are those of the original concepts, and without one more concept."""
    sums = Run.load(run).statistics_file("ship")
    assert sums.samefile(Run.load(fused).statistics_file("ship"))  # they lie on the disk once
    assert not Run.load(fused).statistics_file("painter").exists()
    first = load_file(fused / "refined.safetensors")
    whole, straight = {"ship": 1.0}, {"drop": ["painter"], "refine": {"identity": 2.0}}
    for name, again, expected in (
        ("same", {}, None),
        ("whole", {"weights": whole}, straight),
        ("added", {"method": "added"}, straight | {"weights": {"ship": 0.5}, "method": "added"}),
        ("less", {"drop": ["ship"]}, straight | {"drop": ["painter", "ship"]}),
    ):
        found = fuse_run(str(fused), str(tmp_path / name), save_pipeline=False, **again)  # type: ignore[arg-type]
        if expected is not None:
            output = str(tmp_path / f"{name} at once")
            fuse_run(str(run), output, save_pipeline=False, **expected)  # type: ignore[arg-type]
            wanted = load_file(Path(output) / "refined.safetensors")
            above(max((wanted[key] - first[key]).abs().max() for key in first), MOVED)
        weights = load_file(found / "refined.safetensors")
        for key, value in (first if expected is None else wanted).items():
            close(weights[key], value, FLOAT32_EDIT)
    third = fuse_run(str(tmp_path / "added"), save_pipeline=False)  # by the method of the run
    assert third.name == "added-added" and Run.load(third).fused == Run.load(tmp_path / "added").fused


def test_a_fused_run_of_a_single_checkpoint_is_exported_from_where_its_base_is_now(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = family("sd1", toy_pipeline)
    pipeline.save_pretrained(tmp_path / "layout")
    for weights in (tmp_path / "layout").rglob("*.safetensors"):
        weights.unlink()
    base = {name: tensor.contiguous() for name, tensor in single_file(pipeline, Source(), None).items()}
    save_file(base, tmp_path / "model.safetensors")
    alone = ["--model.method", "MaceRefinement", "--report_seeds", "0", "--export", "[]"]
    fitted = config(tmp_path, tmp_path / "model.safetensors", "run", CONCEPTS[:1])
    erase_main([*fitted, *alone, "--model.layout", str(tmp_path / "layout")])
    fused = fuse_run(str(tmp_path / "run"), str(tmp_path / "fused"), refine={"identity": 2.0}, save_pipeline=False)
    weights = load_file(fused / "refined.safetensors")
    first = load_file(tmp_path / "run" / "refined.safetensors")
    above(max((weights[name] - first[name]).abs().max() for name in weights), MOVED)
    (tmp_path / "moved").mkdir()
    for option, name in (("layout", "layout"), ("pretrained", "model.safetensors")):  # one more is missing each time
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
        args = ["export", "--run", str(fused), "--output", str(tmp_path / "out.safetensors"), "--format", "single_file"]
        assert f"Say where it is now with --{option}." in exit_message(args, capsys)
    now = ["--pretrained", str(tmp_path / "moved/model.safetensors"), "--layout", str(tmp_path / "moved/layout")]
    erase_main([*args, *now])
    found, places = load_file(tmp_path / "out.safetensors"), unet_names(pipeline.unet)
    edited = {name for name, parts in places.items() if parts[0] in weights}
    assert len(edited) == len(weights) and found.keys() == base.keys()
    for name, tensor in found.items():
        if name in edited:
            close(tensor, weights[places[name][0]], FLOAT32_EDIT)
        else:
            torch.testing.assert_close(tensor, base[name], rtol=0, atol=0)
    erase_main(["export", "--run", str(fused), "--output", str(tmp_path / "out"), "--format", "pipeline", *now])
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet").state_dict()
    assert all(torch.equal(unet[places[name][0]], found[name]) for name in edited)


def score(base: Path, runs: list[Path], clip: Path, output: Path) -> list[str]:
    model = ["--model.pretrained", str(base), "--model.classifier", str(clip), "--model.output", str(output)]
    model += ["--model.runs", f"[{', '.join(map(str, runs))}]", "--model.steps", "1", "--trainer.logger", "false"]
    return ["test", *model, "--data.names", "[ship, dog, cat]", "--data.seeds", "1", "--trainer.accelerator", "cpu"]


def test_a_fused_run_is_scored_as_a_fitted_one(run: Path, toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    same = fuse_run(str(run), str(tmp_path / "same"), save_pipeline=False)
    erase_main(score(toy_pipeline, [run, same], toy_clip, tmp_path / "scores.json"))
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["same"]["after"]["top1"] == scores["run"]["after"]["top1"]
    assert {row["word"] for row in scores["same"]["concepts"] if row["role"] == "erased"} == {"ship", "dog"}


@pytest.mark.parametrize("command", ["export", "fuse", "test", "attack", "eval-unlearn"])
def test_a_fused_run_refuses_another_base(
    fused: Path, other_base: Path, toy_clip: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = ["--run", str(fused), "--pretrained", str(other_base)]
    out = str(tmp_path / "out")
    attack = ["--model.pretrained", str(other_base), "--model.edited", str(fused), "--model.output", f"{out}.json"]
    commands = {
        "export": ["export", *moved, "--format", "pipeline", "--output", out],
        "fuse": ["fuse", *moved, "--output_dir", out],
        "test": score(other_base, [fused], toy_clip, Path(f"{out}.json")),
        "attack": ["attack", *attack, "--data.names", "[ship, dog]", "--data.targets", "[ship]"],
    }
    if command in commands:
        said = exit_message(commands[command], capsys)
    else:
        with pytest.raises(UserError) as refused:
            Technique(str(fused), "ship", pretrained=str(other_base))
        said = str(refused.value)
    assert "the unet of" in said and "is not the one that was edited: it has other weights" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["lora", "target", "width"])
def test_files_of_another_concept_or_none_are_not_fused(run: Path, tmp_path: Path, damage: str) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    found = Run.load(broken)
    if damage == "lora":
        found.lora_file("dog").unlink()
        said = f"run: {found.lora_file('dog')} is no file"
    elif damage == "target":
        shutil.copyfile(found.statistics_file("ship"), found.statistics_file("dog"))
        said = f"run: {found.statistics_file('dog')} was made for the target 'ship', not 'dog'"
    else:
        narrow = torch.eye(8, dtype=torch.float64)
        found.save_concept("dog", ConceptSums(narrow, narrow.clone(), narrow.clone()), {})
        said = f"run: {found.statistics_file('dog')} has F of shape (8, 8), expected (32, 32)"
    with pytest.raises(UserError, match=re.escape(said)):
        fuse_run(str(broken), str(tmp_path / "out"), save_pipeline=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", b"model: [", "is no YAML"),
        ("config.yaml", b"- a\n", "is no configuration of a run: it has no model"),
        ("config.yaml", b"seed_everything: 1\n", "is no configuration of a run: it has no model"),
        ("edit.safetensors", None, "was not written by fit or fuse"),
    ],
)
def test_a_damaged_run_names_its_file(run: Path, tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in ("config.yaml", "edit.safetensors"):
        shutil.copyfile(run / file, broken / file)
    if content is None:
        save_file({"a": torch.zeros(1)}, broken / name)
    else:
        (broken / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"run: {broken / name} {said}")):
        Run.load(broken)


def test_what_fuse_needs_is_named(run: Path, fused: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run=.*nowhere is no output folder of fit or fuse"):
        fuse_run(str(tmp_path / "nowhere"))
    bare = Path(shutil.copytree(fused, tmp_path / "bare"))
    Run.load(bare).statistics_file("dog").unlink()
    with pytest.raises(UserError, match=r"cannot be fused: it has no statistics of dog"):
        fuse_run(str(bare))
    (bare / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"cannot be fused: it has no config\.yaml"):
        fuse_run(str(bare))
    with pytest.raises(UserError, match=r"'painter' is no target of .*fused\. Its targets are ship, dog\."):
        fuse_run(str(fused), weights={"painter": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_a_run_is_not_fused_into_itself(run: Path, tmp_path: Path) -> None:
    before = checksums(run)
    for output, verb in ((run, "is"), (run.parent, "holds"), (run / "report", "lies in")):
        with pytest.raises(UserError, match=rf"output_dir=.* {verb} the run \("):
            fuse_run(str(run), str(output), overwrite=True)
    assert checksums(run) == before


@pytest.mark.parametrize("command", ["fit", "fuse", "export"])
def test_what_a_run_reads_is_not_replaced_by_it(
    command: str, run: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is a pipeline in the folder of an earlier run, and that run's folder is the output."""
    first = Path(shutil.copytree(run, tmp_path / "first"))
    base = shutil.copytree(toy_pipeline, first / "pipeline")
    (first / ".written.json").write_text(json.dumps([p.relative_to(first).as_posix() for p in first.rglob("*")]))
    before = checksums(first)
    own = shutil.copytree(run, tmp_path / "own")
    settings = yaml.safe_load((own / "config.yaml").read_text())
    settings["model"]["pretrained"] = str(base)
    (own / "config.yaml").write_text(yaml.safe_dump(settings))
    more = {"fit": "--output_dir", "fuse": "--output_dir", "export": "--output"}[command]
    args = {
        "fit": ["fit", "--config", str(own / "config.yaml")],
        "fuse": ["fuse", "--run", str(own), "--pretrained", str(base)],
        "export": ["export", "--run", str(own), "--format", "pipeline", "--pretrained", str(base)],
    }[command]
    message = exit_message([*args, more, str(first), "--overwrite", "true"], capsys)
    assert "holds the base model" in message
    assert checksums(first) == before


@pytest.mark.parametrize("setting", ["model.prior", "model.domain", "data.pictures", "data.concepts"])
def test_every_input_of_a_run_is_known(setting: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (file := tmp_path / "run" / "given").write_bytes(b"")
    own = [{"target": "ship", "anchor": "sky", "images": str(file)}]
    topic, name = setting.split(".")
    settings: dict[str, dict[str, object]] = {"model": {"pretrained": "org/model"}, "data": {}}
    settings[topic][name] = own if name == "concepts" else str(file)
    assert [place for _, place in inputs_of(settings)] == [str(file)]
    with pytest.raises(UserError, match=r"output_dir=.*run holds the .*given\)\. Choose another --output_dir"):
        refuse_inputs(tmp_path / "run", inputs_of(settings))
