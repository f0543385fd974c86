"""A killed run resumes where it was, and ends as an unbroken one."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.forks import Forked, forked, ranks
from support.runs import CONCEPTS, SCRIPT, config, exit_message, saved
from support.tolerances import RUN_WEIGHTS, close

from mace_pl.callbacks.lora_checkpoint import KIND
from mace_pl.cli import erase_main
from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_tensors

STEPS = 24


def command(folder: Path, pipeline: Path, name: str, concepts: object = None, **data: object) -> list[str]:
    args = config(folder, pipeline, name, concepts, steps_per_concept=STEPS, concepts_per_batch=2, **data)
    return [*args, "--keep_every_n_steps", "4", "--save_pipeline", "false", "--report_seeds", "0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs find the same images."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(toy_pipeline: Path, place: Path) -> dict[str, torch.Tensor]:
    """What an unbroken run learns."""
    erase_main(command(place, toy_pipeline, "whole"))
    return load_file(place / "whole" / "refined.safetensors")


def same_threads() -> dict[str, str]:
    """Sums split over another number of threads differ in the last bit: the killed run gets this process's."""
    return {"OMP_NUM_THREADS": str(torch.get_num_threads())}


@pytest.mark.parametrize("first", ["ship", "dog"], ids=["in the first group", "in the last group"])
def test_a_killed_run_ends_as_an_unbroken_one(
    toy_pipeline: Path,
    place: Path,
    whole: dict[str, torch.Tensor],
    first: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = command(place, toy_pipeline, f"killed_{first}")
    output, work = place / f"killed_{first}", place / f".killed_{first}.training"
    process = Forked(SCRIPT, args, same_threads())
    try:
        while not (work / f"{first}.safetensors").is_file():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.poll() == -signal.SIGKILL and not output.exists()
    done = saved(work)
    assert done[first] > 0 and (first == "ship" or done["ship"] == STEPS)
    assert min(done.values()) < STEPS or "dog" not in done, "nothing was left to do"
    capsys.readouterr()
    erase_main(args)
    assert f"{first} ({done[first]} steps)" in " ".join(capsys.readouterr().out.split())
    resumed = load_file(output / "refined.safetensors")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not work.exists()


def test_what_was_kept_is_not_used_with_other_settings(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str) -> list[str]:
        return [*command(tmp_path, toy_pipeline, name, CONCEPTS[:1]), "--data.steps_per_concept", "6"]

    erase_main([*run("changed"), "--model.lr", "0.02"])
    fresh = load_file(tmp_path / "changed" / "refined.safetensors")
    stop = json.dumps([{"class_path": "support.runs.Stop", "init_args": {"after": 4}}])
    assert "4 of 6 steps of 'ship'" in exit_message([*run("again"), "--trainer.callbacks", stop], capsys)
    erase_main([*run("again"), "--model.lr", "0.02"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Not used again: ship in " in said and ".safetensors: other settings." in said
    changed = load_file(tmp_path / "again" / "refined.safetensors")
    assert all(torch.equal(fresh[key], changed[key]) for key in fresh)


def test_another_number_of_threads_resumes(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums in another order change embeddings and images in the last bit; what was trained is taken all the same."""
    stop = [{"class_path": "support.runs.Stop", "init_args": {"after": 4}}]
    args = [*command(tmp_path, toy_pipeline, "cut", concepts=CONCEPTS[:1]), "--trainer.callbacks", json.dumps(stop)]
    args += ["--data.steps_per_concept", "6", "--report_seeds", "0"]
    assert "4 of 6 steps of 'ship'" in exit_message(args, capsys)
    (file,) = (tmp_path / ".cut.training").glob("*.safetensors")
    with safe_open(str(file), framework="pt") as opened:
        (left,) = json.loads(opened.metadata()["mace_pl"])["concepts"].values()
    other = 2 if torch.get_num_threads() == 1 else 1
    done = forked(SCRIPT, args, {"OMP_NUM_THREADS": str(other)})
    assert done.returncode == 0, done.stderr[-3000:]
    said = " ".join((done.stdout + done.stderr).split())
    assert "holds: ship (4 steps)" in said and "Not used again" not in said
    losses = json.loads((tmp_path / "cut/report/metrics.json").read_text())["losses"]["ship"]
    assert (losses["steps"], losses["first_loss"]) == (6, left["losses"][0])


def test_everything_finished_only_fuses(
    toy_pipeline: Path, place: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = command(place, toy_pipeline, "late")

    def full(*args: object) -> None:
        raise UserError("cannot write: no space left")

    with monkeypatch.context() as patched:
        patched.setattr("mace_pl.run.Run.save_concept", full)
        with pytest.raises(SystemExit):
            erase_main(args)
    assert saved(place / ".late.training") == {"ship": STEPS, "painter": STEPS, "dog": STEPS}
    with monkeypatch.context() as patched:
        patched.setattr("mace_pl.modules.concept_erasure.attention_loss", full)  # nothing may be trained again
        erase_main(args)
    late = load_file(place / "late" / "refined.safetensors")
    assert all(torch.equal(whole[key], late[key]) for key in whole)


@pytest.mark.parametrize("count", [1, 3], ids=["one rank has no concept", "one rank has more groups"])
def test_ranks_with_unequal_work_take_part(toy_pipeline: Path, tmp_path: Path, count: int) -> None:
    concepts = CONCEPTS[:count]
    fewer = ["--report_seeds", "0", "--save_pipeline", "false"]
    erase_main([*config(tmp_path, toy_pipeline, "one", concepts), *fewer])
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp", *fewer]
    for done in ranks(SCRIPT, [*config(tmp_path, toy_pipeline, "two", concepts, concepts_per_batch=1), *more]):
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "refined.safetensors") for name in ("one", "two"))
    for name in one:
        close(one[name], two[name], RUN_WEIGHTS)


@pytest.mark.parametrize("method", ["Mace", "UCE"])
def test_what_another_run_has_saved_stays(toy_pipeline: Path, tmp_path: Path, method: str) -> None:
    other = tmp_path / ".run.training" / "cat.safetensors"
    state = {"target": "cat", "steps": 1, "losses": [1.0], "identity": {"target": "cat"}}
    write_tensors(other, {"some.A": torch.ones(1)}, KIND, {"concepts": {"some": state}})
    few = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 2}
    args = config(tmp_path, toy_pipeline, "run", CONCEPTS[:1], **few)
    erase_main([*args, "--model.method", method, "--report_seeds", "0", "--save_pipeline", "false"])
    assert [path.name for path in other.parent.iterdir()] == ["cat.safetensors"]


def test_a_file_in_the_place_of_what_is_resumed_is_named(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".run.training").write_text("mine")
    message = exit_message(config(tmp_path, toy_pipeline, "run", CONCEPTS[:1]), capsys)
    assert ".run.training is a file, where the run leaves what it resumes from" in message
    assert not (tmp_path / "pictures").exists()
