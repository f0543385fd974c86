"""The report before training: positions that decode to the words, shared tokens, and what the base model generates."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from rich.console import Console

from mace_pl.concepts.concept import Concept, read_templates
from mace_pl.concepts.token_report import check_prompts, preflight, show_preflight
from mace_pl.errors import UserError

CONCEPTS = [Concept("a dog house", "the sky"), Concept("ship", "ground"), Concept("painter", "art", "style")]


@pytest.fixture(scope="module")
def pipeline(toy_pipeline: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)


def test_positions_decode_to_target_and_anchor(pipeline: StableDiffusionPipeline) -> None:
    templates = [read_templates(None, c.kind) for c in CONCEPTS]
    rows = preflight(pipeline, CONCEPTS, templates, [], {})
    tokenizer = pipeline.tokenizer
    for row, own in zip(rows, templates, strict=True):
        assert [span["template"] for span in row["spans"]] == own
        for span in row["spans"]:
            for which in ("target", "anchor"):
                start, stop = span[which]
                ids = tokenizer(span["template"].replace("{}", row[which])).input_ids[start:stop]
                assert tokenizer.convert_ids_to_tokens(ids) == row[f"{which}_tokens"]
                assert tokenizer.decode(ids).strip() == row[which]


def test_an_anchor_of_the_targets_tokens_is_refused(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(
        UserError, match=r"the anchor 'Ship' has the tokens of its target 'ship'.*Choose another anchor"
    ):
        check_prompts(pipeline, [Concept("ship", "Ship")], [["a photo of a {}"]])


def test_names_that_share_tokens_are_listed(pipeline: StableDiffusionPipeline) -> None:
    templates = [["{}"]] * 3
    preserved = ["dog", "a cat", "bird"]
    rows = preflight(pipeline, CONCEPTS, templates, preserved, {"ship": 0.9})
    for row in rows:
        own = set(pipeline.tokenizer.tokenize(row["target"]))
        others = [name for name in [*preserved, "a dog house", "ship", "painter"] if name != row["target"]]
        shared = {name: sorted(own & set(pipeline.tokenizer.tokenize(name))) for name in others}
        assert row["shares_tokens_with"] == {name: found for name, found in shared.items() if found}
    dog, ship, _ = rows
    assert {"dog", "a cat"} <= set(dog["shares_tokens_with"])
    assert (dog["accuracy"], ship["accuracy"]) == (None, 0.9)


def test_a_target_that_is_hardly_generated_is_named(
    pipeline: StableDiffusionPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = {"ship": 0.25, "a dog house": 1.0}
    rows = preflight(pipeline, CONCEPTS, [["{}"]] * 3, ["dog"], seen)
    show_preflight(rows, Console(width=200))
    shown = capsys.readouterr().out
    assert "The base model hardly generates 'ship' (seen in 25% of its images)" in shown
    assert "hardly generates 'a dog house'" not in shown and "100% seen" in shown
    assert "dog (" in shown
