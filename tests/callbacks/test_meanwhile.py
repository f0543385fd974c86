"""What a run shows of itself: images of the edit so far that change nothing, and a file that says how far it is."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback
from PIL import Image
from safetensors.torch import load_file
from support.runs import CONCEPTS, config, exit_message

from mace_pl.cli import erase_main

EVERY = ["--images_every_n_steps", "2", "--save_pipeline", "false", "--kept", "[cat]", "--report_seeds", "0"]


def edit(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "refined.safetensors")


def progress(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "progress.json").read_text()))


class Watches(Callback):
    """Reads the file while the run trains, as another program does."""

    seen: list[dict[str, object]] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        Watches.seen.append(progress(Path(trainer.default_root_dir) / ".shown.training"))


@pytest.fixture(scope="module")
def plain(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that shows nothing while it trains; three steps of three concepts, two at once."""
    place = tmp_path_factory.mktemp("meanwhile")
    erase_main([*config(place, toy_pipeline, "plain", CONCEPTS, concepts_per_batch=2), *EVERY[2:]])
    return place / "plain"


def test_images_on_the_way_change_nothing_and_reach_the_report_and_a_logger(
    plain: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    place, Watches.seen = plain.parent, []
    args = [*config(place, toy_pipeline, "shown", CONCEPTS, concepts_per_batch=2), *EVERY]
    args += ["--trainer.callbacks", json.dumps([{"class_path": f"{__name__}.Watches"}])]
    args += ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(place / "logs")]
    erase_main([*args, "--trainer.default_root_dir", str(place)])
    whole, shown = edit(plain), edit(place / "shown")
    assert all(torch.equal(whole[key], shown[key]) for key in whole)
    files = sorted((place / "shown" / "report" / "steps").iterdir())
    assert [file.name for file in files] == ["000004.png", "000007.png", "000009.png"]
    assert "![step 7](steps/000007.png)" in (place / "shown" / "report" / "summary.md").read_text()
    assert len({Image.open(file).tobytes() for file in files}) == 3, "the edit changes from row to row"
    events = accumulator.EventAccumulator(str(next((place / "logs").rglob("events.*")).parent)).Reload()
    assert [event.step for event in events.Images("edit so far")] == [4, 7, 9]
    assert Watches.seen[0] | {"state": "running", "stage": "train", "steps": 9} == Watches.seen[0]
    assert Watches.seen[-1]["images"] == "steps/000007.png", "it reads before the last row is made"
    done = progress(place / "shown" / "report")
    assert done["state"] == "finished" and done["step"] == 9 and isinstance(done["loss"], float)
    assert not (place / ".shown.training").exists()


def test_a_run_that_was_cut_off_has_failed_and_resumes_to_the_same_weights(plain: Path, toy_pipeline: Path) -> None:
    place = plain.parent
    args = [*config(place, toy_pipeline, "cut", CONCEPTS, concepts_per_batch=2), *EVERY, "--keep_every_n_steps", "1"]
    stop = [{"class_path": "support.runs.Stop", "init_args": {"after": 3, "interrupt": True}}]
    with pytest.raises(SystemExit):
        erase_main([*args, "--trainer.callbacks", json.dumps(stop)])
    left = progress(place / ".cut.training")
    assert left["state"] == "failed" and left["error"] == "KeyboardInterrupt" and left["stage"] == "train"
    erase_main(args)
    whole, resumed = edit(plain), edit(place / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    names = [file.name for file in sorted((place / "cut" / "report" / "steps").iterdir())]
    assert names == ["000004.png", "000007.png", "000009.png"], "the first is of the part before"
    assert progress(place / "cut" / "report")["state"] == "finished"


def test_what_is_refused_or_dry_leaves_no_file(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "ship"}])
    assert "has the tokens of its target" in exit_message([*args, *EVERY], capsys)
    erase_main([*config(tmp_path, toy_pipeline, "dry", CONCEPTS[:1]), "--dry_run", "true"])
    assert not list(tmp_path.glob(".*.training"))
    args = config(tmp_path, toy_pipeline, "run", CONCEPTS[:1])
    assert "images_every_n_steps=-1 must be at least 0" in exit_message([*args, "--images_every_n_steps=-1"], capsys)
