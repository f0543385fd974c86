"""What need not end a run is said before it starts."""

from pathlib import Path

from diffusers import DiffusionPipeline

from mace_pl.concepts.concept import Concept
from mace_pl.stages.preflight import warned


def test_an_anchor_that_is_erased_itself_is_named(toy_pipeline: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    concepts = [Concept("ship", "dog"), Concept("dog", "sky")]
    (said,) = (line for line in warned(pipeline, concepts, []) if "erased itself" in line)
    assert said.startswith("The anchor of 'ship' is 'dog', which is erased itself")
    assert not any("erased itself" in line for line in warned(pipeline, concepts[1:], []))


def test_targets_and_names_in_other_words_are_named(toy_pipeline: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    given = ["ship", "a ship", "ships", ".", "a", "藝", "warship"]
    said = warned(
        pipeline, [Concept(name) for name in given], ["two ships", "the ship", "dog", "warships at sea", "SHIP", "ship"]
    )
    assert [line.split(":")[0] for line in said if "target" in line or "preserved" in line] == [
        "'SHIP' has the tokens of the target 'ship'",
        "The target '.' is a single sign, and changes every prompt that holds it.",
        "The target 'a' is a single sign, and changes every prompt that holds it.",
        "The target 'a ship' asks for 'ship', which is a target too. 'ship' alone is enough.",
        "The target 'ships' asks for 'ship', which is a target too. 'ship' alone is enough.",
        "'the ship' is to be preserved and asks for a target",
        "'two ships' is to be preserved and holds 'ship', which is erased",
        "'two ships' is to be preserved and holds 'ships', which is erased",
        "'warships at sea' is to be preserved and holds 'warship', which is erased",
    ]


def test_a_style_among_the_objects_is_named(toy_pipeline: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    given = [Concept("monet"), Concept("Dali", kind="style"), Concept("Cubist", kind="person"), Concept("ship")]
    said = warned(pipeline, given, [], ["Monet", "Dali", "cubist"])
    assert [line for line in said if "style" in line] == [
        "'monet' is the name of a style, and is erased as an object. Write {target: monet, kind: style} if the style "
        "is meant."
    ]
