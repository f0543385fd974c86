"""A run on the Hugging Face Hub: what is sent to a stand-in for its service, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard, constants
from PIL import Image
from support.finished import finished_run
from support.hub import TOKEN, Hub, stand_in
from support.runs import exit_message

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.commands.push import IMAGE, published_card
from mace_pl.files.artifacts import write_json
from mace_pl.files.versions import STATE, STATES
from mace_pl.library.history import Event, History, Note
from mace_pl.run import Run

REPO = "somebody/no-ship"


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its pipeline, its LoRA and the report's image."""
    folder = finished_run(tmp_path_factory.mktemp("push") / "run", toy_pipeline)
    export_run(str(folder), "pipeline")
    export_run(str(folder), "lora")
    (folder / "report").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(folder / "report" / "before_after.png")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in(tmp_path / "hub") as service:
        monkeypatch.setattr(constants, "ENDPOINT", service.url)  # what HF_ENDPOINT sets in a process of its own
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield service


def push(run: Path, *options: str) -> list[str]:
    return ["push", "--run", str(run), "--repo", REPO, *options]


def test_a_published_pipeline_is_loaded_and_its_card_says_what_it_is(run: Path, hub: Hub) -> None:
    erase_main(push(run))
    there = hub.folder / REPO
    files = [file for file in (run / "pipeline").rglob("*") if file.is_file() and not file.name.startswith(".")]
    exported = {file.relative_to(run / "pipeline").as_posix() for file in files}
    assert set(hub.files(REPO)) == exported | {".gitattributes", "images/before_after.png"}
    for name in exported - {"README.md"}:
        assert (there / name).read_bytes() == (run / "pipeline" / name).read_bytes()
    card = ModelCard.load(there / "README.md")
    assert {"concept-erasure", "machine-unlearning"} <= set(card.data.tags)
    assert f'from_pretrained("{REPO}")' in card.text and "images/before_after.png" in card.text and "ship" in card.text
    assert card.text.index("## Before and after") < card.text.index("## Limits")
    assert hub.private == {REPO: True} and hub.messages == ["Erase ship"]
    image = StableDiffusionPipeline.from_pretrained(there)("a ship", num_inference_steps=1, output_type="np").images[0]
    assert image.std() > 0


def test_a_lora_is_published_alone_and_for_all_who_ask_for_that(run: Path, hub: Hub) -> None:
    erase_main(push(run, "--format", "lora", "--images", "false", "--private", "false", "--message", "Ships"))
    assert set(hub.files(REPO)) == {".gitattributes", "README.md", "run.safetensors"}
    assert hub.private == {REPO: False} and hub.messages == ["Ships"]
    assert REPO in (hub.folder / REPO / "README.md").read_text()


def test_files_that_are_there_are_replaced_only_when_asked(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    erase_main(push(run, "--format", "lora"))
    assert "overwrite" in exit_message(push(run), capsys)
    assert hub.messages == ["Erase ship"]
    erase_main(push(run, "--overwrite", "true"))
    assert "run.safetensors" not in hub.files(REPO) and "model_index.json" in hub.files(REPO)


def test_a_dry_run_shows_everything_and_asks_nobody(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # where nobody listens
    erase_main(push(run, "--dry_run", "true"))
    shown = capsys.readouterr().out
    for word in ("model_index.json", "images/before_after.png", "machine-unlearning", REPO, "ship"):
        assert word in shown
    assert "Written to" not in shown


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--format", "edit"], "format=edit"),
        (["--format", "lora_peft"], "erase.py export"),
        (["--repo", "no repository"], "user/name"),
    ],
)
def test_what_cannot_be_published_is_told(
    run: Path, hub: Hub, options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert word in exit_message(push(run, *options), capsys)
    assert not hub.private


def test_who_may_not_write_and_who_cannot_be_reached(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "hf auth login" in exit_message(push(run), capsys)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached" in exit_message(push(run), capsys)


def test_the_card_says_what_its_image_does_not_show(run: Path, tmp_path: Path) -> None:
    text = (run / "pipeline" / "README.md").read_text(encoding="utf-8")
    for count, said in ((10, False), (12, True)):
        own = Run.load(str(shutil.copytree(run, tmp_path / str(count))))
        write_json(own.metrics, {"prompts": ["a photo of a thing"] * count})
        assert ("The first 10 of 12 names." in published_card(text, REPO, own, True)) == said


@pytest.fixture
def library(run: Path, tmp_path: Path) -> Path:
    """A library of two states without a report, whose one entry was judged by its run."""
    place, names = tmp_path / "all of them", ("0" * 64, "1" * 64)
    for name in names:
        state = place / STATES / name
        shutil.copytree(run, state, ignore=shutil.ignore_patterns("report", "pipeline", "lora"))
        write_json(state / STATE, {"entries": {"ship": "e" * 64}, "weights": {}, "moved": {}})
    note = Note("e" * 64, "2026-01-01T00:00:00+00:00", scores={"before": 1.0, "after": 0.25})
    history = History([Event("fit", names[0], targets=("ship",), added={"ship": note})])
    history.then(Event("strengths", names[1], targets=("ship",))).save(place)
    return place


def test_the_state_that_was_given_is_exported_first(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = library / STATES / ("0" * 64)
    for given, named in ((library, library), (library / STATES / ("1" * 64), library), (old, old)):
        message = exit_message(push(given, "--format", "lora", "--dry_run", "true"), capsys)
        assert f"export --run '{named}' --format lora" in message  # quoted for its blanks


def test_a_library_without_a_report_shows_what_its_entries_scored(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_run(str(library), "lora")
    erase_main(push(library, "--format", "lora", "--dry_run", "true"))
    said = capsys.readouterr()
    assert "| ship | 100% | 25% |" in said.out and "together, as they are here, were not measured" in said.out
    assert IMAGE not in said.out and "images: no image is sent" in said.err


@pytest.mark.parametrize("name", ["", "noslash", "a/b/c", "somebody/no ship", "a/b--c", "a/" + "b" * 120, "a/b.git"])
def test_a_repository_that_cannot_be_is_refused_by_a_dry_run_too(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = exit_message(["push", "--run", str(run), "--repo", name, "--dry_run", "true"], capsys)
    assert f"repo={name} is no name of a repository: write user/name." in message
