"""Nothing is removed that the project did not write, whatever a target is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import checksums, config, exit_message

from mace_pl.cli import erase_main
from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, slug, write_json, written_aside
from mace_pl.files.owned import refuse_inputs, refuse_other_images

ROOT = Path(__file__).parents[2]
FEW = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 1}
ODD = [".", "..", "...", "../..", "/", "~", "C++", "C--", "c/d", "c\\d", "🚢", "🐱", "मीरा", "मैरी", "con", "NUL.txt"]
ODD += [
    "a_b",
    "a b",
    "-",
    "name",
    "x" * 300,
    "x" * 301,
    "é" * 200,
    "ship.",
    ".ship",
    "_",
    "[sks] ship",
    "<ship>",
    "ship",
]


def test_names_have_file_names_of_their_own() -> None:
    files = [slug(name) for name in ODD]
    assert len({file.casefold() for file in files}) == len(ODD)
    for file in files:
        assert file == Path(file).name and not file.startswith(".") and not file.endswith(".")
        assert len(file.encode()) <= 100 and file.split(".")[0].lower() not in ("con", "nul")
    assert (slug("ship"), slug("van gogh"), slug("R2-D2"), slug("Beyoncé")) == ("ship", "van_gogh", "R2-D2", "Beyoncé")


def test_names_are_plain_where_file_names_cannot_hold_their_letters(tmp_path: Path) -> None:
    names = ["ship", "मैरी", "मीरा", "van gogh 🚢"]
    code = f"from mace_pl.files.artifacts import slug\nfor n in {ascii(names)}: open(slug(n), 'x'); print(slug(n))"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=plain, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    files = done.stdout.split()
    assert len(set(files)) == len(names) and all(file.isascii() for file in files) and files[0] == "ship"


def test_a_folder_with_a_file_of_others_is_not_replaced(tmp_path: Path) -> None:
    for _ in range(2):  # what was written here is replaced
        with written_aside(tmp_path / "run") as aside:
            (aside / "deep").mkdir(parents=True)
            write_json(aside / "deep" / "a.json", {})
    (tmp_path / "run" / "deep" / "mine.txt").write_text("keep")
    before = checksums(tmp_path)
    refused = pytest.raises(ValueError, match=r"output: .*run holds deep/mine.txt, which this project did not write")
    with refused, written_aside(tmp_path / "run") as aside:
        aside.mkdir()
    with pytest.raises(ValueError, match="is a folder, where a file would be written"):
        write_json(tmp_path / "run", {})
    assert checksums(tmp_path) == before


def test_a_folder_inside_a_run_is_replaced_unless_it_holds_a_file_of_others(tmp_path: Path) -> None:
    with written_aside(tmp_path / "run") as aside:
        (aside / "lora").mkdir(parents=True)
        (aside / "lora" / "README.md").write_text("a card")
    for text in ("another", "a third"):
        with written_aside(tmp_path / "run" / "lora") as aside:
            aside.mkdir()
            (aside / "README.md").write_text(text)
        assert (tmp_path / "run" / "lora" / "README.md").read_text() == text
    (tmp_path / "run" / "lora" / "mine.txt").write_text("keep")
    refused = pytest.raises(ValueError, match=r"lora holds mine\.txt, which this project did not write")
    with refused, written_aside(tmp_path / "run" / "lora") as aside:
        aside.mkdir()


def test_a_damaged_record_protects_all_files(tmp_path: Path) -> None:
    with written_aside(tmp_path / "run") as aside:
        aside.mkdir()
        (aside / "a.txt").write_text("a")
    (tmp_path / "run" / ".written.json").write_text("{")
    refused = pytest.raises(ValueError, match=r"run holds a\.txt, which this project did not write")
    with refused, written_aside(tmp_path / "run") as aside:
        aside.mkdir()


def test_a_run_replaces_runs_alone(tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    concepts = [{"target": ".", "anchor": "sky"}]
    mine = tmp_path / "pictures" / "cat" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    args = config(tmp_path, toy_pipeline, "run", concepts, **FEW)
    erase_main(args)
    erase_main([*args, "--overwrite", "true"])
    assert mine.read_text() == "keep"
    (tmp_path / "run" / "report" / "notes.md").write_text("mine")
    before = checksums(tmp_path)
    message = exit_message([*args, "--overwrite", "true", "--data.image_steps", "2"], capsys)
    assert "output_dir" in message and "report/notes.md" in message
    assert checksums(tmp_path) == before


def test_images_of_others_are_not_overwritten(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated = tmp_path / "pictures" / "ship" / "images"
    generated.mkdir(parents=True)
    (generated / "mine.png").write_bytes(b"mine")
    (generated.parent / "settings.json").write_text(json.dumps({"target": "ship"}))
    message = exit_message(config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "sky"}], **FEW), capsys)
    assert "data.pictures" in message and "images/mine.png" in message
    assert (generated / "mine.png").read_bytes() == b"mine" and not (tmp_path / "run").exists()


def test_what_another_command_wrote_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()  # an empty folder is as good as none
    refused = pytest.raises(UserError, match=r"output_dir: another command has written .*run meanwhile")
    with refused as said, written_aside(tmp_path / "run", "output_dir", overwrite=False) as late:
        late.mkdir()
        (late / "own.txt").write_text("late")
        with written_aside(tmp_path / "run", "output_dir", overwrite=False) as early:
            early.mkdir()
            (early / "own.txt").write_text("early")
    assert (tmp_path / "run" / "own.txt").read_text() == "early"
    (left,) = tmp_path.glob("run-*")
    assert (left / "own.txt").read_text() == "late" and str(left) in str(said.value)
    refused = pytest.raises(UserError, match="another command has written")
    with refused, written_aside(tmp_path / "a.safetensors", overwrite=False) as late:
        late.write_text("late")
        (tmp_path / "a.safetensors").write_text("early")
    assert (tmp_path / "a.safetensors").read_text() == "early"
    assert [file.read_text() for file in tmp_path.glob("a-*.safetensors")] == ["late"]


def test_the_later_of_two_runs_replaces_nothing(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meanwhile = [{"class_path": "support.runs.Meanwhile", "init_args": {"folder": str(tmp_path / "run")}}]
    args = config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "sky"}], **FEW)
    args += ["--report_seeds", "0", "--save_pipeline", "false", "--trainer.callbacks", json.dumps(meanwhile)]
    message = exit_message(args, capsys)
    (left,) = (path for path in tmp_path.glob("run-*"))
    assert "another command has written" in message and left.name in message
    assert (tmp_path / "run" / "edit.safetensors").read_bytes() == b"of another run"
    assert (left / "edit.safetensors").is_file()


def written_run(folder: Path) -> Path:
    """A folder that this project has written as a whole, with the file of an edit and a statistics file."""
    with written_aside(folder) as aside:
        for name in ("edit.safetensors", "unet/config.json", "statistics/dog.safetensors", "images/000.png"):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_text("ours")
    return folder


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("run", r"run holds edit\.safetensors, which is no image of a target"),
        ("run/unet", r"unet holds config\.json, which is no image"),
        ("run/statistics", r"statistics holds dog\.safetensors, which is no image"),
        (".", r"holds the run run, which would be lost"),
    ],
)
def test_images_of_a_target_replace_images_alone(target: str, message: str, tmp_path: Path) -> None:
    written_run(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        refuse_other_images(tmp_path / target)


def test_images_of_a_target_replace_those_that_were_generated_before(tmp_path: Path) -> None:
    with written_aside(tmp_path / "ship") as aside:
        for name in ("images/000.png", "masks/000.png", "attention_masks/000.png", "settings.json"):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_text("ours")
    with written_aside(tmp_path / "ship" / "own" / "masks") as aside:
        aside.mkdir(parents=True)
        (aside / "my photo.png").write_text("a mask of the user's own image")
    refuse_other_images(tmp_path / "ship")
    (tmp_path / "ship" / "own" / "masks" / "mine.png").write_text("the user's own mask")
    with pytest.raises(UserError, match=r"holds own/masks/mine\.png, which is no image of a target"):
        refuse_other_images(tmp_path / "ship")


def test_a_library_and_a_folder_of_runs_are_not_replaced(tmp_path: Path) -> None:
    written_run(tmp_path / "runs" / "first")
    with pytest.raises(UserError, match=r"output_dir: .*runs holds the run first, which would be lost"):
        claim_output(tmp_path / "runs", overwrite=True)
    claim_output(tmp_path / "runs" / "first", overwrite=True)
    claim_output(tmp_path / (200 * "x"), overwrite=False)
    with pytest.raises(UserError, match="is a name of 201 bytes"):
        claim_output(tmp_path / (201 * "x"), overwrite=False)
    (tmp_path / "runs" / "first" / "library.json").write_text("{}")
    for place, said in (("runs", "holds the library first"), ("runs/first", "is a library, whose history would")):
        with pytest.raises(UserError, match=said):
            claim_output(tmp_path / place, overwrite=True)


def test_a_file_of_weights_of_others_is_not_replaced(toy_pipeline: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((toy_pipeline / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"output: .*model\.safetensors was not written by this project"):
        claim_output(weights, overwrite=True, setting="output")


def test_no_output_holds_an_input_or_lies_in_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for output, verb in ((run, "is"), (tmp_path, "holds"), (run / "report", "lies in"), (run / "new" / "a", "lies in")):
        with pytest.raises(UserError, match=rf"output_dir=.* {verb} the run \("):
            refuse_inputs(output, [("run", run)])
    refuse_inputs(tmp_path / "run-fused", [("run", run), ("base model", "org/model"), ("layout", None)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data.pictures", "{pictures}/a.yaml"], "a.yaml is a file"),
        (["--data.pictures", "{pictures}/run"], "lies in the run run"),
        (["--data.pictures", "{pictures}/run/pictures"], "lies in the run run"),
        (["--data.pictures", "{base}/unet"], "lies in the base model"),
        (["--output_dir", "{pictures}/ship"], "is the images of 'ship'"),
        (["--output_dir", "{pictures}/ship/run"], "lies in the images of 'ship'"),
    ],
)
def test_a_place_for_images_is_refused_at_the_start(
    given: list[str], message: str, tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    written_run(pictures / "run")
    (pictures / "a.yaml").write_text("a: 1")
    args = config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "sky"}], **FEW)
    before = checksums(tmp_path)
    places = [word.format(pictures=pictures, base=toy_pipeline) for word in given]
    assert message in exit_message([*args, *places, "--dry_run", "true"], capsys)
    assert checksums(tmp_path) == before
