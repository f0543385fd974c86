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
