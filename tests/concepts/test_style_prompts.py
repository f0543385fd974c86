"""A style is asked for in names that the model knows, where no prompts are given; the run says in which."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.runs import config

from mace_pl.cli import erase_main
from mace_pl.commands.library import add_concepts
from mace_pl.concepts.concept import Concept, templates_of
from mace_pl.concepts.templates import NO_THING, STYLE_TEMPLATES, TEMPLATES, style_templates
from mace_pl.data.concepts import ConceptData
from mace_pl.library.change import Library
from mace_pl.library.store import read_entry

NAMES = [
    f"{colour} {thing}" for colour in ("red", "blue", "pale") for thing in ("dog", "cat", "ship", "tree", "cup", "car")
]
PAINTER = {"target": "painter", "anchor": "art", "kind": "style"}
SHIP = {"target": "ship", "anchor": "ground", "kind": "object"}
UNSEEN = ["--save_pipeline", "false", "--report_seeds", "0"]


@pytest.fixture(scope="module")
def knowing(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says what it knows."""
    folder = Path(shutil.copytree(toy_pipeline, tmp_path_factory.mktemp("knowing") / "model"))
    (folder / "names.txt").write_text("\n".join([*NAMES, "Ship", "a {}"]) + "\n")
    return folder


def test_half_of_the_prompts_hold_names_taken_evenly() -> None:
    asked = style_templates(NAMES)
    assert asked[:NO_THING] == STYLE_TEMPLATES[:NO_THING] and len(asked) == len(set(asked)) == len(STYLE_TEMPLATES)
    shown = [name for name in NAMES if f"a photo of a {name} in the style of {{}}" in asked[NO_THING:]]
    assert len(shown) == len(STYLE_TEMPLATES) - NO_THING
    left = [i for i, name in enumerate(NAMES) if name not in shown]
    assert all(b - a > 1 for a, b in zip(left, left[1:], strict=False)), "those that are left out lie apart"
    assert style_templates(NAMES[: len(STYLE_TEMPLATES) - NO_THING - 1]) == STYLE_TEMPLATES


def test_names_count_for_styles_without_prompts_alone() -> None:
    concepts = [Concept("ship"), Concept("Ann", "art", "style"), Concept("Amy", "a person", "person")]
    asked = templates_of(None, concepts, NAMES)
    assert asked == [TEMPLATES["object"], style_templates(NAMES), TEMPLATES["person"]]
    assert templates_of({"Ann": ["{} art"], "object": ["a {}"]}, concepts, NAMES)[:2] == [["a {}"], ["{} art"]]
    assert templates_of("varied", concepts, NAMES) == templates_of("varied", concepts)


def test_the_data_say_what_repeats_them() -> None:
    def asked(given: object, *concepts: object) -> object:
        return ConceptData(list(concepts), templates=given).ask_in([*NAMES, "Ship", "a {}"])  # type: ignore[arg-type]

    assert asked(None, SHIP) is None and asked(["a {}"], PAINTER) == ["a {}"]
    assert asked(None, SHIP, PAINTER) == {"style": style_templates(NAMES)}, "a target is in no prompt of another"
    assert asked({"object": ["a {}"]}, SHIP, PAINTER) == {"object": ["a {}"], "style": style_templates(NAMES)}
    for given in ({"painter": ["{} art"]}, {"style": ["{} art"]}):
        assert asked(given, PAINTER) == given


def test_a_run_records_its_prompts_and_is_repeated_by_them(knowing: Path, tmp_path: Path) -> None:
    erase_main([*config(tmp_path, knowing, "run", [SHIP, PAINTER]), *UNSEEN])
    own = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(own.read_text())["data"]["templates"] == {"style": style_templates(NAMES)}
    (knowing / "names.txt").rename(tmp_path / "away")  # another version of the model says nothing
    try:
        erase_main(["fit", "--config", str(own), "--output_dir", str(tmp_path / "again")])
    finally:
        (tmp_path / "away").rename(knowing / "names.txt")
    first, again = (load_file(tmp_path / name / "edit.safetensors") for name in ("run", "again"))
    for name, tensor in first.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)


def test_a_style_that_is_added_is_asked_for_in_names_too(knowing: Path, tmp_path: Path) -> None:
    erase_main([*config(tmp_path, knowing, "run", [SHIP]), *UNSEEN])
    add_concepts(str(tmp_path / "run"), [PAINTER], report_seeds=0)
    library = Library.open(str(tmp_path / "run"))
    entry = read_entry(library.folder, library.members.entries["painter"])
    assert list(entry.templates or ()) == style_templates(NAMES)
