"""Where images went, counted by hand: hand-made images, and judges whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.judges import Always, Corner
from support.tolerances import BY_HAND, close

from mace_pl.evaluation.clip import ClipClassifier, ClipEncoder
from mace_pl.evaluation.emptiness import empty
from mace_pl.evaluation.judges import CLIP, Judges, judge_labels
from mace_pl.evaluation.report_images import ORIGINAL
from mace_pl.evaluation.results import Measured, all_results, each_judge
from mace_pl.evaluation.score_tables import score_tables
from mace_pl.evaluation.words import Words
from mace_pl.methods.metrics import ImageScores

CLASSES = ["ship", "dog", "house", "boat", "cat"]  # the images of a class have its number in a corner
WORDS = Words(["ship", "dog"], {"ship": ["raft"]}, ["house", "boat", "cat"], {"ship": ["raft", "boat"]})
WHITE, NOBODY = -1, 99
SEEDS = 4


def image(shown: int) -> Image.Image:
    """A white square, or a black shape whose corner says what it is."""
    made = Image.new("RGB", (32, 32), "white")
    if shown != WHITE:
        made.paste((0, 0, 0), (8, 8, 24, 24))
        made.putpixel((0, 0), (shown, 255, 255))
    return made


def measured(judges: Judges, shown: dict[str, list[int]], count: int) -> dict[str, torch.Tensor]:
    """The tables of the words' images."""
    table = ImageScores(len(WORDS.all), 1, SEEDS, None, count)
    for word, classes in shown.items():
        place = WORDS.all.index(word)
        cells = torch.tensor([[place, 0, seed] for seed in range(len(classes))])
        images = [image(one) for one in classes]
        seen = judges(images, judges.each[0].clip.image(images) if count > 1 else torch.zeros(1), 0, [place] * SEEDS)
        table.update(cells, **seen, clip_score=torch.zeros(SEEDS))
    return table.compute()


BEFORE = {"ship": [0] * 4, "dog": [1] * 4, "raft": [0, 0, 0, 4]}
AFTER = {"ship": [3, 2, 2, 4], "dog": [1, 1, 1, 0], "raft": [2, 2, NOBODY, 0]}


def results(toy_clip: Path, after: dict[str, list[int]], strict: bool = True) -> dict[str, Any]:
    judges = Judges([Corner(CLASSES)], ClipEncoder(str(toy_clip)), WORDS, ["a {}"], strict)
    tables = {name: measured(judges, shown, 1) for name, shown in ((ORIGINAL, BEFORE), ("run", after))}
    near = {"run": {"ship": {"embedding": ["dog"], "tokens": []}}}
    return all_results(Measured(WORDS, tables, [], {}, ["Corner"]), {"run": {"ship": "house"}}, near)


def test_where_images_went_is_counted_over_all_classes(toy_clip: Path) -> None:
    found = results(toy_clip, AFTER)["run"]
    # of the ship's, one is a boat, which is a ship; two are houses, the anchor; one is a cat
    assert found["after"]["shares"] == {"target": 0.25, "anchor": 0.5, "other": 0.25, "empty": 0}
    assert found["after"]["top1"]["acc_e"] == 0.25
    assert found["after"]["probability"]["acc_e"] == 0.25
    assert found["after"]["synonym_shares"] == {"target": 0.25, "anchor": 0.5, "other": 0.25, "empty": 0}
    assert found["before"]["shares"] == {"target": 1, "anchor": 0, "other": 0, "empty": 0}
    assert found["before"]["synonym_shares"]["other"] == 0.25
    assert (found["after"]["top1"]["acc_s"], found["after"]["top1"]["acc_n"]) == (0.75, 0.75)
    rows = {row["word"]: row["seen_as"] for row in found["concepts"]}
    assert rows == {"dog": {"ship": 0.25}, "ship": {"house": 0.5, "cat": 0.25}, "raft": {"house": 0.5}}
    assert found["fails"] == []


def test_an_erasure_that_leaves_white_squares_has_failed(toy_clip: Path) -> None:
    scores = results(toy_clip, AFTER | {"ship": [WHITE] * 4, "raft": [WHITE, 2, 2, 2]})
    found = scores["run"]
    assert found["after"]["shares"] == {"target": 0, "anchor": 0, "other": 0, "empty": 1}
    assert found["after"]["top1"]["acc_e"] == 0  # which alone looks like a success
    assert found["fails"] == [
        "100% of the images of what is erased are empty",
        "25% of the images of its synonyms are empty",
    ]
    table = score_tables(scores, None)[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["empty"] == "✗ 1.000" and row["H"].startswith("✗ ")
    assert table.notes[0] == "✗ run has failed: 100% of the images of what is erased are empty"


def test_an_empty_image_is_what_a_judge_takes_it_for_unless_classes_are_given(toy_clip: Path) -> None:
    blank = AFTER | {"dog": [WHITE] * 4}
    answers = []
    for strict in (True, False):
        judges = Judges([Always(CLASSES, "dog")], ClipEncoder(str(toy_clip)), WORDS, ["a {}"], strict)
        seen = judges([image(WHITE), image(1)], torch.zeros(2, 1), 0, [1, 1])
        answers.append((seen["seen"][:, 0].tolist(), seen["probability"][:, 0].tolist(), seen["empty"].tolist()))
    assert answers == [([-1, 1], [0, 1], [True, False]), ([1, 1], [1, 1], [True, False])]
    assert results(toy_clip, blank)["run"]["after"]["top1"]["acc_s"] == 0


def test_a_mean_over_runs_is_marked_where_one_has_failed(toy_clip: Path) -> None:
    scores = results(toy_clip, AFTER)
    scores["other"] = results(toy_clip, AFTER | {"ship": [WHITE] * 4})["run"]
    mean = score_tables(scores, None)[0].rows[-1]
    h = [scores[name]["after"]["top1"]["h"] for name in ("run", "other")]
    assert mean[0] == "mean of 2" and mean[-1] == f"✗ {sum(h) / 2:.3f}"


def test_several_judges_say_what_each_says_alone(toy_clip: Path) -> None:
    clip, own = ClipEncoder(str(toy_clip)), Corner(CLASSES)
    both = Judges([CLIP, own], clip, WORDS, ["a {}", "the {}"], False)
    images = [image(shown) for shown in (0, 1, 4, NOBODY)]
    seen = both(images, clip.image(images), 1, [0, 1, 2, 0])
    alone = ClipClassifier(str(toy_clip), CLASSES, "the {}")(images)
    assert seen["seen"].tolist() == [[int(c), s] for c, s in zip(alone.argmax(-1), [0, 1, 4, -1], strict=True)]
    assert seen["undetected"].tolist() == [[False, False]] * 3 + [[False, True]]
    # ship and raft may be seen as a ship or a boat
    close(
        seen["probability"][:, 0],
        torch.stack([alone[0, 0] + alone[0, 3], alone[1, 1], *(alone[2:, 0] + alone[2:, 3])]),
        BY_HAND,
    )
    assert seen["probability"][:, 1].tolist() == [1, 1, 0, 0]


def test_results_and_tables_have_a_row_per_judge(toy_clip: Path) -> None:
    judges = Judges([CLIP, Corner(CLASSES)], ClipEncoder(str(toy_clip)), WORDS, ["a {}"], True)
    tables = {name: measured(judges, shown, 2) for name, shown in ((ORIGINAL, BEFORE), ("run", AFTER))}
    near: dict[str, Any] = {"run": {}}
    scores = all_results(Measured(WORDS, tables, [], {}, ["clip", "Corner"]), {"run": {"ship": "house"}}, near)
    alone = results(toy_clip, AFTER)["run"]
    found = each_judge(scores["run"])
    assert list(found) == ["clip", "Corner"] and scores["run"]["after"] == found["clip"]["after"]
    assert found["Corner"]["after"]["shares"] == alone["after"]["shares"]
    table = score_tables(scores, "clip")[0]
    assert table.columns[:2] == ["run", "judge"]
    assert [row[:2] for row in table.rows] == [["run", "clip (chose the settings)"], ["run", "Corner (reports)"]]


def test_judges_of_one_class_are_told_apart() -> None:
    assert judge_labels([CLIP, Corner([]), Always(["a"], "a"), Corner([])]) == [
        "clip",
        "Corner 1",
        "Always",
        "Corner 2",
    ]


@pytest.mark.parametrize(("spread", "blank"), [(0, True), (3, True), (4, False)])
def test_empty_is_what_has_less_contrast_than_the_threshold(spread: int, blank: bool) -> None:
    """Half of the pixels above, half below a gray: their standard deviation is ``spread`` / 127.5, 0.024 and 0.031."""
    made = Image.new("RGB", (128, 128), (128 - spread,) * 3)
    made.paste((128 + spread,) * 3, (0, 0, 64, 128))
    assert empty([made]).tolist() == [blank]
