"""What the page does, without a browser: strengths, images, cancelling, two users at once, saving and exporting."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from support.runs import CONCEPTS, config
from support.tolerances import FLOAT32_EDIT, close

from mace_pl.cli import erase_main
from mace_pl.commands.fuse import fuse_run
from mace_pl.commands.library import add_concepts, undo_change
from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_json
from mace_pl.library.change import Library
from mace_pl.models.backbone import backbone_of
from mace_pl.models.sampling import generate
from mace_pl.run import Run
from mace_pl.studio.asked import Asked
from mace_pl.studio.session import Studio
from mace_pl.studio.turns import Cancelled

FULL = {"ship": 1.0, "painter": 1.0, "dog": 1.0}


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three concepts; the domain's names and a vocabulary are preserved."""
    place = tmp_path_factory.mktemp("studio")
    preserved = ["--model.domain_names", "[cat, house]", "--model.refine.domain", "0.1", "--model.fuse.domain", "0.1"]
    words = [*config(place, toy_pipeline, "run", CONCEPTS), *preserved]
    erase_main([*words, "--save_pipeline", "false", "--report_seeds", "0"])
    return place / "run"


@pytest.fixture(scope="module")
def studio(run: Path) -> Studio:
    return Studio.open(str(run))


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Studio:
    """Of a copy, which a test may change."""
    return Studio.open(str(shutil.copytree(run, tmp_path / "run")))


def asked(strengths: Mapping[str, float], prompt: str = "a photo of a ship", steps: int = 2) -> Asked:
    return Asked(prompt, (0, 1), steps, 5.0, strengths)


def pixels(images: object) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize(
    "strengths",
    [FULL, {"ship": 0.3, "painter": 1.0, "dog": 0.0}, {"painter": 0.5}, {"ship": 1.0, "dog": 0.85}],
    ids=["full", "some", "one", "two"],
)
def test_the_live_edit_is_that_of_fuse(studio: Studio, run: Path, tmp_path: Path, strengths: dict[str, float]) -> None:
    drop = [target for target in FULL if target not in strengths]
    written = fuse_run(str(run), str(tmp_path / "fused"), drop, strengths, save_pipeline=False)
    edit = studio.live.edit(strengths)
    live = edit.weights(studio.live.original)
    for name, value in load_file(written / "refined.safetensors").items():
        close(live[name.removesuffix(".weight")], value, FLOAT32_EDIT)


@pytest.mark.parametrize("method", ["added", "refined"])
def test_the_live_edit_is_that_of_fuse_however_it_is_fused(run: Path, tmp_path: Path, method: str) -> None:
    strengths = {"ship": 0.4, "dog": 1.0}
    written = fuse_run(str(run), str(tmp_path / "fused"), "painter", strengths, method=method, save_pipeline=False)
    studio = Studio.open(str(written))
    assert studio.strengths == strengths
    edit = studio.live.edit(strengths)
    live = edit.weights(studio.live.original)
    for name, value in load_file(written / "refined.safetensors").items():
        close(live[name.removesuffix(".weight")], value, FLOAT32_EDIT)


def test_a_vocabulary_is_chosen_from_anew_for_each_strength(run: Path, tmp_path: Path) -> None:
    """The names that are preserved depend on what is erased."""
    file = Path(shutil.copytree(run, tmp_path / "run")) / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["model"] |= {"domain_vocabulary": ["cat", "sky", "art", "house", "tree"], "domain_affected": 2}
    file.write_text(yaml.safe_dump(content))
    strengths = {"ship": 0.3, "painter": 1.0, "dog": 0.1}
    written = fuse_run(str(file.parent), str(tmp_path / "fused"), None, strengths, save_pipeline=False)
    studio = Studio.open(str(file.parent))
    studio.live.edit(FULL)
    live = studio.live.edit(strengths).weights(studio.live.original)
    for name, value in load_file(written / "refined.safetensors").items():
        close(live[name.removesuffix(".weight")], value, FLOAT32_EDIT)


def test_images_are_those_of_the_original_and_of_the_fused_pipeline(studio: Studio, run: Path, tmp_path: Path) -> None:
    strengths = {"ship": 0.5, "dog": 1.0}
    shown = studio.images(asked(strengths), "somebody")
    written = fuse_run(str(run), str(tmp_path / "fused"), "painter", strengths)
    for folder, images in ((written / "pipeline", shown.edited), (Path(studio.base.source.place), shown.original)):
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        expected = generate(pipeline, ["a photo of a ship"] * 2, [0, 1], steps=2)
        assert np.abs(pixels(images).astype(int) - pixels(expected)).max() <= 1
    assert (pixels(shown.edited) != pixels(shown.original)).any()


def test_the_pipeline_has_its_own_weights_between_turns(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {n: W.clone() for n, W in backbone_of(studio.base.pipeline).text_layers().items()}
    studio.images(asked({"ship": 1.0}), "somebody")
    with pytest.raises(RuntimeError, match="broken"), studio.edited({"ship": 1.0}):
        raise RuntimeError("broken")
    after = backbone_of(studio.base.pipeline).text_layers()
    assert all(torch.equal(after[name], W) for name, W in before.items())


def test_nothing_chosen_is_the_original(studio: Studio) -> None:
    shown = studio.images(asked({}), "somebody")
    assert (pixels(shown.edited) == pixels(shown.original)).all()


def test_two_users_at_once_do_not_mix(studio: Studio) -> None:
    """Each gets what it gets alone, however their turns fall."""
    wanted = {"one": asked({"ship": 1.0}), "two": asked({"dog": 0.2}, "a photo of a dog")}
    alone = {who: pixels(studio.images(what, who).edited) for who, what in wanted.items()}
    found: dict[str, list[np.ndarray]] = {who: [] for who in wanted}

    def use(who: str) -> None:
        for _ in range(3):
            found[who].append(pixels(studio.images(wanted[who], who).edited))

    threads = [threading.Thread(target=use, args=(who,)) for who in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who, images in found.items():
        assert len(images) == 3 and all((one == alone[who]).all() for one in images)
    assert (alone["one"] != alone["two"]).any()


def test_a_newer_wish_of_the_same_user_ends_the_older(studio: Studio) -> None:
    started, ended = threading.Event(), []

    def long() -> None:
        try:
            studio.images(asked({"ship": 0.9}, "a long one", steps=100), "somebody", lambda done, whole: started.set())
        except Cancelled:
            ended.append("cancelled")

    thread = threading.Thread(target=long)
    thread.start()
    assert started.wait(60)
    shown = studio.images(asked({"ship": 0.1}), "somebody")
    thread.join()
    assert ended == ["cancelled"] and len(shown.edited) == 2


def test_cancel_ends_what_is_generated_and_nothing_else(studio: Studio) -> None:
    def cancel(done: int, whole: int) -> None:
        studio.turns.cancel("nobody", 0)
        if done == 3:
            studio.turns.cancel("somebody", 0)
        assert done <= 3 and whole == 200

    with pytest.raises(Cancelled):
        studio.images(asked({"ship": 1.0}, "another one", steps=100), "somebody", cancel)
    assert len(studio.images(asked({"ship": 1.0}), "somebody").edited) == 2


def test_the_grid_shows_targets_and_preserved_names(studio: Studio) -> None:
    names, shown = studio.grid(asked({"ship": 1.0}), ["cat", "dog"], "somebody")
    assert names == ["ship", "painter", "dog", "cat"]
    assert len(shown.original) == len(shown.edited) == 4
    cat = generate(studio.base.pipeline, ["a photo of a cat"], [0], steps=2)
    assert np.abs(pixels(shown.original[3:]).astype(int) - pixels(cat)).max() <= 1


def test_strengths_are_saved_as_a_state_that_undo_takes_back(own: Studio, run: Path, tmp_path: Path) -> None:
    strengths = {"ship": 0.5, "dog": 1.0}
    state = own.save(asked(strengths), "half is enough", "A. Person")
    saved, home = Run.load(tmp_path / "run"), tmp_path / "run"
    assert saved.folder.name == state and saved.targets == ["dog", "ship"] and saved.fused.weights == {"ship": 0.5}
    written = fuse_run(str(run), str(tmp_path / "fused"), "painter", strengths, save_pipeline=False)
    expected = load_file(written / "refined.safetensors")
    for name, value in load_file(saved.place("refined")).items():
        close(value, expected[name], FLOAT32_EDIT)
    event = Library.open(str(home)).history.events[-1]
    assert (event.action, event.targets, event.reason, event.requester) == (
        "strengths",
        ("ship", "painter"),
        "half is enough",
        "A. Person",
    )
    assert own.strengths == strengths
    again = own.save(asked(FULL))  # what was left out comes back
    assert sorted(Run.load(home).targets) == sorted(FULL) and again != state
    undo_change(str(home))
    assert Run.load(home).folder.name == state
    erase_main(["log", "--run", str(home)])


def test_saving_is_refused_where_it_would_say_nothing_or_overlook_another(own: Studio, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are those of the current state"):
        own.save(asked(FULL))
    with pytest.raises(UserError, match="nothing would be left"):
        own.save(asked({}))
    first = own.state
    own.save(asked({"ship": 0.5}), seen=first)
    with pytest.raises(UserError, match=f"another browser has saved the state {own.state[:12]} .*Reload"):
        own.save(asked({"ship": 0.3}), seen=first)
    assert not own.outdated
    other = add_concepts(str(tmp_path / "run"), [{"target": "horse", "anchor": "sky"}])
    assert own.outdated
    with pytest.raises(UserError, match="changed by another command"):
        own.save(asked({"ship": 0.2}))
    assert [event.action for event in Library.open(str(other)).history.events] == ["fit", "strengths", "add"]


@pytest.mark.parametrize("form", ["pipeline", "lora", "single_file", "edit"])
def test_an_export_holds_the_edit_that_was_seen(own: Studio, tmp_path: Path, form: str) -> None:
    strengths = {"ship": 0.5, "dog": 1.0}
    shown = own.images(asked(strengths), "somebody")
    place = own.export(asked(strengths), form, "half a ship")
    assert place.parent.parent == tmp_path / "run-studio" and place.exists()
    if form == "pipeline":
        pipeline = StableDiffusionPipeline.from_pretrained(place)
        expected = generate(pipeline, ["a photo of a ship"] * 2, [0, 1], steps=2)
        assert np.abs(pixels(shown.edited).astype(int) - pixels(expected)).max() <= 1
        assert "0.5" in (place / "README.md").read_text()
    with pytest.raises(UserError, match="exists"):
        own.export(asked(strengths), form, "half a ship")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": tuple(range(17))}, "seeds"),
        ({"steps": 0}, "steps"),
        ({"guidance": 16.0}, "guidance"),
        ({"strengths": {"ship": 1.5}}, "between 0"),
    ],
)
def test_what_cannot_be_is_refused(studio: Studio, wrong: dict[str, object], message: str) -> None:
    given = {"prompt": "", "seeds": (0,), "steps": 2, "guidance": 5.0, "strengths": {}} | wrong
    with pytest.raises(UserError, match=message):
        studio.images(Asked(**given), "somebody")


def test_exports_stay_in_their_folder(own: Studio, tmp_path: Path) -> None:
    place = own.export(asked({"ship": 1.0}), "edit", "../../elsewhere")
    assert place.resolve().is_relative_to((tmp_path / "run-studio").resolve())
    for form, name in (("edit", " "), ("unet", "x")):
        with pytest.raises(UserError, match="export"):
            own.export(asked({"ship": 1.0}), form, name)


def test_the_card_of_an_export_has_what_is_known_of_its_targets(own: Studio) -> None:
    """Of a run by its report, of a library by its entries; not of a target that is left out."""
    accuracy = {"before": {"ship": 1.0, "dog": 0.75}, "after": {"ship": 0.25, "dog": 0.0}}
    write_json(own.run.metrics, {"accuracy": accuracy})
    for name in ("of a run", "of a library"):
        card = own.export(asked({"ship": 0.5, "painter": 1.0}), "lora", name).joinpath("README.md").read_text()
        assert "| ship | 100% | 25% |" in card and "| dog |" not in card and "at full\nstrength" in card
        if not Library.open(str(own.run.home)).history.events:
            own.save(asked({**FULL, "ship": 0.5}))
