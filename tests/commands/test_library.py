"""A library: the edit is that of the set of its entries in any order, and every state comes back to the bit."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from support.forks import Forked, forked
from support.runs import SCRIPT, config, exit_message
from support.tolerances import FLOAT32_EDIT, MOVED, above, below, close

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.commands.fuse import fuse_run
from mace_pl.commands.library import add_concepts, remove_concepts, replace_concepts, undo_change
from mace_pl.errors import UserError
from mace_pl.library.change import Library
from mace_pl.library.states import moved_of
from mace_pl.methods.closed_form import Preservation, fuse, refine
from mace_pl.run import Run

SHIP = {"target": "ship", "anchor": "ground", "kind": "object"}
DOG = {"target": "dog", "anchor": "sky", "kind": "object"}
#: the code of this checkout, in a process of its own
ALONE = {"OMP_NUM_THREADS": "1"}
WORKER = Path(__file__).resolve().parents[1] / "library" / "kill_worker.py"


def fitted(folder: Path, pipeline: Path, name: str, *concepts: dict[str, str]) -> Path:
    erase_main([*config(folder, pipeline, name, list(concepts)), "--save_pipeline", "false", "--report_seeds", "0"])
    return folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def ship(place: Path, toy_pipeline: Path) -> Path:
    """A run."""
    return fitted(place, toy_pipeline, "ship", SHIP)


@pytest.fixture(scope="module")
def dog(place: Path, toy_pipeline: Path) -> Path:
    return fitted(place, toy_pipeline, "dog", DOG)


@pytest.fixture(scope="module")
def painter(place: Path, toy_pipeline: Path) -> Path:
    return fitted(place, toy_pipeline, "painter", {"target": "painter", "anchor": "art", "kind": "style"})


@pytest.fixture(scope="module")
def both(ship: Path, place: Path) -> Path:
    """The run of the ship, to which the dog was added."""
    library = copy(ship, place / "both")
    words = ["--concepts", "[{target: dog, anchor: sky}]", "--reason", "request 12", "--requester", "A. Person"]
    erase_main(["add", "--run", str(library), *words])
    return library


def copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def edit(folder: Path, form: str = "edit") -> bytes:
    """The file of the current state."""
    return Run.load(folder).place(form).read_bytes()


def actions(folder: Path) -> list[str]:
    return [event.action for event in Library.open(str(folder)).history.events]


def test_the_order_of_requests_does_not_count(both: Path, dog: Path, place: Path) -> None:
    """To the bit: the edit, the edited weights, the id of the state."""
    other = add_concepts(str(copy(dog, place / "other order")), [SHIP])
    one, two = Run.load(both), Run.load(other)
    assert one.targets == two.targets == ["dog", "ship"] and one.folder.name == two.folder.name
    for form in ("edit", "refined"):
        assert edit(both, form) == edit(other, form)
    back = remove_concepts(str(other), "dog")  # the set of the first run, solved from its entry
    assert Run.load(back).folder.name == Library.open(str(both)).history.events[0].state


def test_the_edit_is_the_closed_form_over_all_entries(both: Path, ship: Path, toy_pipeline: Path) -> None:
    """By the equations alone, from the sums and LoRAs of runs that know nothing of each other."""
    run = Run.load(both)
    own = [run.concept(target) for target in run.targets]
    weights = Preservation(identity=1.0)
    T = refine(sum(sums.F for sums, _ in own), sum(sums.G for sums, _ in own), weights)
    fused = fuse(T, sum(sums.F_all for sums, _ in own), weights)
    close(run.edit.R, fused.R.float(), FLOAT32_EDIT)
    unet = UNet2DConditionModel.from_pretrained(toy_pipeline / "unet")
    for name, value in load_file(run.place("refined")).items():
        layer = name.removesuffix(".weight")
        expected = unet.get_parameter(name).detach().double() @ fused.R
        for sums, factors in own:
            A, B = factors[layer]
            expected += B.double() @ fused.fused(A, sums.F_all)
        close(value, expected.float(), FLOAT32_EDIT)
    (before, _), (after, _) = Run.load(ship).concept("ship"), run.concept("ship")
    assert all(torch.equal(before.tensors[name], value) for name, value in after.tensors.items())


def test_add_then_remove_gives_the_earlier_file(both: Path, ship: Path, tmp_path: Path) -> None:
    library, first = copy(both, tmp_path / "run"), edit(ship)
    second = edit(library)
    assert first != second
    remove_concepts(str(library), ["dog"], reason="withdrawn")
    assert edit(library) == first
    undo_change(str(library))
    assert edit(library) == second
    undo_change(str(library))
    assert edit(library) == first
    undo_change(str(library), to=Run.load(both).folder.name[:12])
    assert edit(library) == second
    assert actions(library) == ["fit", "add", "remove", "undo", "undo", "undo"]


def test_the_run_lies_in_the_first_state(both: Path, ship: Path) -> None:
    """And no longer beside the states; nothing lies there twice, and nothing of a training."""
    first = both / "states" / Library.open(str(both)).history.events[0].state
    for name in ("edit.safetensors", "config.yaml", "refined.safetensors", "report/metrics.json"):
        assert (first / name).read_bytes() == (ship / name).read_bytes()
    names = {path.name for path in both.iterdir() if not path.name.startswith(".")}
    assert names == {"library.json", "states", "entries", "refinements"}
    assert len(list(both.rglob("ship.safetensors"))) == len(list(both.rglob("dog.safetensors"))) == 2
    assert not list(both.glob("states/*/statistics/*")) and not list(both.glob("states/*/stages/lora/*"))


def test_the_log_says_what_why_and_for_whom(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")  # words, dates and ids stay whole
        erase_main(["log", "--run", str(both)])
    shown = capsys.readouterr().out
    for word in ("fit", "add", "dog →", "request 12;", "A. Person", Run.load(both).folder.name[:12], "moved"):
        assert word in shown
    notes = Library.open(str(both)).history.notes()
    assert (notes["dog"].reason, notes["dog"].requester, notes["ship"].reason) == ("request 12", "A. Person", None)
    moved = moved_of(Run.load(both))
    assert all(far is not None and 0 < far < 1 for far in moved.values()) and set(moved) == {"dog", "ship"}


def test_a_state_is_named_by_the_beginning_of_its_id(both: Path) -> None:
    whole = Run.load(both).folder
    assert Run.load(whole.with_name(whole.name[:12])).folder == whole == Run.load(whole).folder


def test_what_was_not_exported_is_said_with_the_command_that_writes_it(both: Path) -> None:
    with pytest.raises(
        UserError, match=r"pipeline is not there. Write it first: erase.py export --run .*both --format"
    ):
        Run.load(both).written("pipeline")
    assert Run.load(both).written("edit").is_file()


def test_the_current_state_is_a_run(both: Path, painter: Path, tmp_path: Path) -> None:
    """It is exported and fused as any other; a library that was copied is whole."""
    library = copy(both, tmp_path / "run")
    out = export_run(str(library), "refined", output=str(tmp_path / "out.safetensors"))
    own = load_file(Run.load(library).place("refined"))
    for name, value in load_file(out).items():
        close(value, own[name], FLOAT32_EDIT)
    lora = export_run(str(library), "lora", rank=1)
    assert lora.is_relative_to(Run.load(library).folder) and (lora / "run.safetensors").is_file()
    fused = fuse_run(str(library), weights={"dog": 0.5}, save_pipeline=False)
    assert fused == tmp_path / "run-fused"
    add_concepts(str(fused), merge=str(painter), retrain_above=None)
    strengths = Run.load(fused).fused
    assert strengths is not None and strengths.weights == {"dog": 0.5}
    assert moved_of(Run.load(fused))["dog"] is None  # what it was trained on is not known


def test_replace_makes_an_entry_anew(both: Path, tmp_path: Path) -> None:
    library = copy(both, tmp_path / "run")
    before = Run.load(library)
    replace_concepts(str(library), [{**DOG, "anchor": "art"}], templates={"dog": ["a {}", "the {}"]}, requester="B.")
    after = Run.load(library)
    assert [concept["anchor"] for concept in after.concepts] == ["art", "ground"]
    assert after.entries["ship"] == library / "entries" / before.entries["ship"].name
    assert after.entries["dog"].name != before.entries["dog"].name
    assert after.config["data"]["templates"]["dog"] == ["a {}", "the {}"]
    assert Library.open(str(library)).history.notes()["dog"].requester == "B."
    undo_change(str(library))
    assert edit(library) == edit(both)


def test_what_the_refinement_has_moved_is_trained_again(both: Path, painter: Path, tmp_path: Path) -> None:
    library = copy(both, tmp_path / "run")
    add_concepts(str(library), merge=str(painter), retrain_above=0.0)
    assert actions(library) == ["fit", "add", "merge", "retrain"]
    events = Library.open(str(library)).history.events
    assert set(events[-1].targets) == {"dog", "painter", "ship"}
    again = Run.load(library)
    for far in moved_of(again).values():
        assert far is not None
        below(far, FLOAT32_EDIT)
    untrained = Run.load(library / "states" / events[-2].state)
    old, new = (run.concept("ship")[1] for run in (untrained, again))
    above(max(float((old[name][1] - new[name][1]).abs().max()) for name in old), MOVED)
    assert Library.open(str(library)).history.notes()["dog"].reason == "request 12"


def test_libraries_of_one_model_merge(both: Path, ship: Path, dog: Path, place: Path, tmp_path: Path) -> None:
    """A run or a library; what they share stays; the notes of the other one come along."""
    library = add_concepts(str(copy(ship, tmp_path / "run")), merge=str(dog))
    assert Run.load(library).folder.name == Run.load(both).folder.name and edit(library) == edit(both)
    joined = add_concepts(str(copy(dog, tmp_path / "dog")), merge=str(both))
    assert edit(joined) == edit(both)
    last = Library.open(str(joined)).history.events[-1]
    assert last.targets == ("ship",) and last.reason == "from both"


def test_what_cannot_be_done_is_refused_and_changes_nothing(
    both: Path, ship: Path, dog: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = copy(toy_pipeline, tmp_path / "base")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    unet.conv_out.bias.data.add_(1)
    unet.save_pretrained(base / "unet")
    replaced = copy(both, tmp_path / "replaced")
    library, before = str(both), (both / "library.json").read_bytes()
    cat = "[{target: cat, anchor: sky}]"
    state = str(Run.load(both).folder)
    for args, says in (
        (["remove", "--run", library, "--targets", "cat"], "'cat' is not in .*, which holds dog, ship"),
        (["remove", "--run", library, "--targets", "dog,ship"], "nothing would be left"),
        (["replace", "--run", library, "--concepts", cat], "'cat' is not in"),
        (["add", "--run", library, "--concepts", "[{target: dog, anchor: art}]"], "'dog' is in .* already"),
        (["add", "--run", library, "--concepts", "[{target: Dog, anchor: art}]"], "'Dog' is in .* already as 'dog'"),
        (["add", "--run", library, "--concepts", cat, "--pretrained", str(base)], "the unet of .* is not the one"),
        (["add", "--run", library], "either --concepts or --merge"),
        (["add", "--run", library, "--merge", ""], "merge is empty. Name the folder"),
        (["add", "--run", library, "--merge", str(dog), "--kept", "[cat]"], "no effect with --merge"),
        (["add", "--run", library, "--merge", str(ship)], "has no entry that"),
        (["add", "--run", state, "--concepts", cat], "is a state of the library"),
        (["add", "--run", str(tmp_path / "none"), "--concepts", cat], "is no output folder"),
        (["undo", "--run", str(ship)], "is no library yet"),
        (["undo", "--run", library, "--to", "zz"], "no state of this library"),
        (["log", "--run", str(ship)], "is no library yet"),
        (
            ["export", "--run", f"{library}/states/zz", "--format", "lora"],
            "no state begins with zz in .* that log lists",
        ),
        (["export", "--run", f"{library}/states/", "--format", "lora"], "is no output folder"),
    ):
        message = exit_message(args, capsys)
        assert re.search(says, message), message
    assert (both / "library.json").read_bytes() == before and (ship / "edit.safetensors").is_file()
    assert not (tmp_path / "none").exists()
    replace_concepts(str(replaced), [{**DOG, "anchor": "art"}])
    for kept in (both, copy(dog, tmp_path / "plain")):  # a library, and a run that is none yet
        files = {path for path in kept.rglob("*") if path.name != ".lock"}
        message = exit_message(["add", "--run", str(kept), "--merge", str(replaced)], capsys)
        assert "'dog' is in" in message and "made in two ways" in message
        assert "remove --run FOLDER --targets dog" in message and "use the other folder as it is" in message
        assert {path for path in kept.rglob("*") if path.name != ".lock"} == files


def test_a_killed_training_leaves_the_last_state(ship: Path, tmp_path: Path) -> None:
    library = copy(ship, tmp_path / "run")
    settings = yaml.safe_load((library / "config.yaml").read_text())
    settings["data"]["steps_per_concept"] = 100_000
    (library / "config.yaml").write_text(yaml.safe_dump(settings))
    words = ["add", "--run", str(library), "--concepts", "[{target: dog, anchor: sky}]"]
    child = Forked(SCRIPT, words, ALONE)
    while child.poll() is None and not list(library.glob("adding/*/*.safetensors")):
        time.sleep(0.05)
    child.kill()
    assert child.poll() == -signal.SIGKILL
    assert edit(library) == edit(ship) and not (library / "library.json").exists()
    settings["data"]["steps_per_concept"] = 3
    (library / "config.yaml").write_text(yaml.safe_dump(settings))
    add_concepts(str(library), [DOG])
    assert actions(library) == ["fit", "add"] and not (library / "adding").exists()


@pytest.mark.parametrize(("event", "name"), [("os.rename", "library.json"), ("os.remove", "edit.safetensors")])
def test_a_kill_while_a_change_is_written_leaves_a_whole_state(
    event: str, name: str, ship: Path, dog: Path, both: Path, tmp_path: Path
) -> None:
    """Before the one file is renamed the run is what it was; after it the library is whole, and tidied next time."""
    library = copy(ship, tmp_path / "run")
    words = ["add", "--run", str(library), "--merge", str(dog)]
    killed = forked(WORKER, [event, name, *words], ALONE)
    assert killed.returncode == -signal.SIGKILL
    if event == "os.rename":
        assert edit(library) == edit(ship)
        add_concepts(str(library), merge=str(dog))
        assert edit(library) == edit(both)
    else:
        assert edit(library) == edit(both)
        undo_change(str(library))
        assert edit(library) == edit(ship)
    assert not (library / "edit.safetensors").exists() and not (library / "statistics").exists()


def test_a_limit_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"retrain_above=-1 must be at least 0, or null"):
        remove_concepts("nowhere", "ship", retrain_above=-1)
