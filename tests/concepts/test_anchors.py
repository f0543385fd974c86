"""The rule of ``anchor: auto``: far from the target, apart from what is erased, little crowded, always the same."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.tolerances import FLOAT32_PASS, close

from mace_pl.concepts.anchors import FAR, GENERAL, NEIGHBOURS, apart_from, candidates_of, centred, rank_anchors
from mace_pl.concepts.concept import Concept
from mace_pl.errors import UserError
from mace_pl.stages.anchors import Choice, choose_anchors

SHIP = Concept("ship")
NAMES = ["dog", "cat", "sky", "ground", "art", "house", "a bird", "tree"]


@pytest.fixture(scope="module")
def pipeline(toy_pipeline: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)


def test_those_that_are_ranked_are_the_farthest_and_the_least_crowded_comes_first(
    pipeline: StableDiffusionPipeline,
) -> None:
    free = apart_from(pipeline, NAMES, ["ship"])
    ranked = rank_anchors(pipeline, SHIP, NAMES, ["ship"], [])
    with torch.no_grad():
        encode = pipeline.text_encoder
        ends = []
        for name in [*free, "ship", "ship"]:  # the target is among the names that crowd, too
            ids = pipeline.tokenizer(f"a photo of a {name}", return_tensors="pt").input_ids
            ends.append(encode(ids).last_hidden_state[0, -1].double())
    rows = torch.stack(ends) - torch.stack(ends).mean(0)
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    by_distance = sorted(range(len(free)), key=lambda i: float(cosines[i, -1]))
    assert {one.name for one in ranked} == {free[i] for i in by_distance[: -int(-FAR * len(free) // 1)]}
    assert [one.crowding for one in ranked] == sorted(one.crowding for one in ranked)
    for one in ranked:
        i = free.index(one.name)
        nearest = torch.cat([cosines[i, :i], cosines[i, i + 1 : -1]]).topk(NEIGHBOURS).values
        close(one.crowding, float(nearest.mean()), FLOAT32_PASS)


def test_the_choice_is_the_same_whatever_ran_before(pipeline: StableDiffusionPipeline) -> None:
    first = rank_anchors(pipeline, SHIP, NAMES, ["ship", "dog"], ["street"])
    centred(pipeline, "a {}", ["another", "prompt"])
    assert rank_anchors(pipeline, SHIP, NAMES, ["ship", "dog"], ["street"]) == first


def test_targets_their_spellings_and_names_that_share_a_word_are_no_candidates(
    pipeline: StableDiffusionPipeline,
) -> None:
    given = ["Ship", "ship", "dog", "a Dog", "dog house", "sky", "Sky"]
    assert apart_from(pipeline, given, ["ship", "dog"]) == ["sky"]
    assert [one.name for one in rank_anchors(pipeline, SHIP, given, ["ship", "dog"], [])] == ["sky"]


def test_nothing_left_to_choose_names_the_settings(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(UserError, match=r"no anchor is left for 'ship': each of dog, ship is erased.*data\.anchors"):
        rank_anchors(pipeline, SHIP, ["dog", "ship"], ["ship", "dog"], [])


@pytest.mark.parametrize("kind", ["object", "person", "style"])
def test_people_and_styles_are_not_turned_into_other_ones(kind: str) -> None:
    concept = Concept("somebody", kind=kind)
    assert candidates_of(concept, ["sky"], NAMES) == [["sky"]]
    assert candidates_of(concept, [], NAMES)[-1] == (NAMES if kind == "object" else GENERAL[kind])
    assert candidates_of(concept, [], []) == [GENERAL[kind]]


def test_an_object_becomes_a_thing_where_there_is_one(pipeline: StableDiffusionPipeline) -> None:
    names = ["dog", "lamp", "nurse", "tent", "genie"]
    assert candidates_of(SHIP, [], names) == [["lamp", "tent"], names]
    assert candidates_of(SHIP, [], ["dog", "nurse"]) == [["dog", "nurse"]]
    assert candidates_of(SHIP, ["dog"], ["lamp"]) == [["dog"]]
    open_one = Concept("ship", kind="object")
    for erased, left in (([], {"house"}), (["house"], {"dog"})):
        concepts = [open_one, *(Concept(name, "art") for name in erased)]
        assert {*choose_anchors(pipeline, concepts, Choice((), ["house", "dog"]), True).values()} == left
