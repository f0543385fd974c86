"""Prompts of levels, from the bundled files and from a user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mace_pl.data.evaluation_prompts import EvaluationPrompts
from mace_pl.data.levels import ATTRIBUTES, DESCRIPTIONS, PROMPTS, SENTENCES, asked_prompts
from mace_pl.files.paths import resolve

FOLDER = resolve("mace_pl/pretraining/emoji")
SAID, TOLD = str(FOLDER / "sentences.json"), str(FOLDER / "descriptions.json")


def test_the_bundled_files_ask_what_was_never_trained_on() -> None:
    asked = asked_prompts(["ship", "airplane", "moon"], SAID, TOLD)
    levels = {level: [one for one in asked if one.level == level] for level in (ATTRIBUTES, SENTENCES, DESCRIPTIONS)}
    assert len(levels[SENTENCES]) == 3 * PROMPTS and all(one.name in one.prompt for one in levels[SENTENCES])
    assert all(one.name not in one.rest and "{" not in one.prompt + one.rest for one in asked)
    described = json.loads(Path(TOLD).read_text())
    told = [one.prompt for one in levels[DESCRIPTIONS] if one.name == "ship"]
    assert told == described["ship"]["held_out"]
    assert {one.name for one in levels[DESCRIPTIONS]} == {"ship", "airplane"}  # none describes the moon
    assert asked == asked_prompts(["ship", "airplane", "moon"], SAID, TOLD)
    blue = next(one for one in levels[ATTRIBUTES] if one.name == "airplane" and "blue" in one.prompt)
    assert blue.prompt == "a photo of an airplane on a blue background"
    assert blue.rest == "a photo of on a blue background"


def test_a_users_own_files(tmp_path: Path) -> None:
    said, told = tmp_path / "said.yaml", tmp_path / "told.yaml"
    said.write_text("held_out: ['{who} met {name}']\nslots: {who: [my aunt]}\nattributes: ['{name} in a hat']\n")
    told.write_text("Ann Lee: [the singer of the band]\n")
    asked = asked_prompts(["Ann Lee", "Bob"], str(said), str(told))
    assert [(one.level, one.prompt, one.rest) for one in asked if one.name == "Ann Lee"] == [
        ("attributes", "Ann Lee in a hat", "in a hat"),
        ("sentences", "my aunt met Ann Lee", "my aunt met"),
        ("descriptions", "the singer of the band", ""),
    ]


def test_ranks_share_the_prompts_of_levels_and_each_has_few_seeds() -> None:
    data = EvaluationPrompts(["ship", "dog"], seeds=40, batch_size=3, sentences=SAID)
    whole, parts = data.levels(0, 1), data.levels(0, 2) + data.levels(1, 2)
    rows = [
        sorted(zip(*(sum((batch[key] for batch in some), []) for key in ("asked", "seed", "prompt")), strict=True))
        for some in (whole, parts)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == len(data.asked) * 5 == 2 * 2 * PROMPTS * 5
    assert EvaluationPrompts(["ship", "dog"], seeds=2).levels(0, 1) == []


@pytest.mark.parametrize(
    ("said", "told", "message"),
    [
        ("held_out: [no name]", None, "'no name' needs"),
        ("held_out: ['{who} met {a}']", None, "the slot 'who' without fillers"),
        ("slots: {}", None, "held_out must be a list of texts"),
        ("[1, 2]", None, "holds no mapping"),
        (None, "moon: [a thing in the sky]", "describes none of data.names"),
        (None, "ship: {}", "ship must be a list of texts"),
    ],
)
def test_files_that_say_too_little_are_refused(
    tmp_path: Path, said: str | None, told: str | None, message: str
) -> None:
    files = [None if text is None else tmp_path / name for text, name in ((said, "said.yaml"), (told, "told.yaml"))]
    for file, text in zip(files, (said, told), strict=True):
        if file is not None:
            file.write_text(str(text))
    with pytest.raises(ValueError, match=message):
        asked_prompts(["ship"], *(None if file is None else str(file) for file in files))
    with pytest.raises(ValueError, match=r"data\.sentences=nowhere\.json is no file"):
        asked_prompts(["ship"], "nowhere.json", None)
