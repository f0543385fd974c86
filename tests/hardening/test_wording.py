"""What a hardening asks for: a style with names in it, a thing by one prompt, and sentences of the user's."""

from dataclasses import replace
from pathlib import Path

import torch
from support.seeds import seeded
from support.tolerances import FLOAT32_PASS, close

from mace_pl.concepts.anchors import centred
from mace_pl.concepts.concept import Concept
from mace_pl.concepts.wording import asks_for, holding
from mace_pl.evaluation.token_attack import encode_all_attacked
from mace_pl.hardening.originals import Look, Originals, generate_originals, preserved_names
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.step import Material, samples_of
from mace_pl.hardening.wording import THINGS, Wording, in_styles, wording_of
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline

NAMES = ["cat", "house", "dog in the style of Monet", "tree"]
PAINTER, SHIP = Concept("Velmora", "noto", "style"), Concept("ship", "dog")


def test_a_style_is_attacked_with_each_name_in_it() -> None:
    asked = wording_of([PAINTER, SHIP], [["{} art"], ["a {}"]], NAMES, {}, {})
    style = [(f"a photo{what} in the style of Velmora", f"a photo{what} in the style of noto")
             for what in ("", " of a cat", " of a house", " of a tree")]  # fmt: skip
    assert asked.attacked == [style, [("a photo of a ship", "a photo of a dog")]]
    assert asked.plain == [[("Velmora art", "noto art"), *style[1:]], [("a ship", "a dog")]]
    assert asked.names == NAMES, "names in another style are preserved all the same"


def test_a_style_without_an_anchor_becomes_the_bare_name() -> None:
    asked = wording_of([Concept("Velmora", "", "style")], [["{} art"]], NAMES[:1], {}, {})
    assert asked.attacked == [
        [("a photo in the style of Velmora", ""), ("a photo of a cat in the style of Velmora", "a photo of a cat")]
    ]


def test_a_style_that_is_preserved_is_asked_for_by_names_in_it() -> None:
    names = ["monet", "a", "b", "Klee", "c", "d in the style of Goya"]
    plain = [name for name in names if name not in ("monet", "Klee")]
    styled = [f"{name} in the style of {style}" for style, order in (("monet", "ab"), ("Klee", "bc")) for name in order]
    assert in_styles(names, ["Monet", "klee", "Goya"]) == [*plain, *styled]
    assert in_styles(["Klee"], ["Klee"]) == [f"{thing} in the style of Klee" for thing in (THINGS[0], THINGS[2])]
    assert in_styles(names, []) == names
    twice = ["cat", "cat in the style of Klee", "Klee"]
    assert in_styles(twice, ["Klee"]) == twice[:2], "a name that is in a style already counts once"
    asked = wording_of([PAINTER, SHIP], [["{} art"], ["a {}"]], ["cat", "Klee"], {}, {}, styles=["Klee"])
    assert asked.names == ["cat", "cat in the style of Klee"]
    assert asked.attacked[0][1:] == [
        ("a photo of a cat in the style of Velmora", "a photo of a cat in the style of noto")
    ]


def test_what_asks_for_a_target_is_not_preserved() -> None:
    names = ["cat", "Ship", "ships", "the ship", "warship", "ship in the style of Goya", "cat in the style of velmora"]
    asked = wording_of([SHIP, PAINTER], [["a {}"], ["{} art"]], names, {"ship": ["boat"]}, {})
    assert asked.names == ["cat", "warship"]
    assert asks_for("a boat", ["ship", "boat"]) and not asks_for("boathouse", ["boat"])
    held = holding(["a photo of a Ship", "warship", "two boats", "ship", "three foxes"], ["ship", "boat", "fox"])
    assert held == [("a photo of a Ship", "ship"), ("two boats", "boat"), ("three foxes", "fox")]


def test_sentences_are_attacked_too() -> None:
    said = {"ship": ["we saw a ship", "it crosses the sea"]}
    asked = wording_of([SHIP], [["a {}"]], ["cat"], {}, said)
    meant = [("we saw a ship", "we saw a dog"), ("it crosses the sea", "a photo of a dog")]
    assert asked.attacked == [[("a photo of a ship", "a photo of a dog"), *meant]]
    assert asked.plain == [[("a ship", "a dog"), *meant]]


def test_prompts_are_spread_over_the_images_that_there_are() -> None:
    pairs = [(f"{i}", "") for i in range(10)]
    asked = Wording(["ship"], [pairs], [pairs], ["cat"], ["{}"])
    assert [one for one, _ in asked.shown(0, 3)] == ["0", "3", "6"]
    assert asked.shown(0, 10) == asked.shown(0, 99) == pairs
    assert [one for one, _ in asked.shown(0, 7)] == ["0", "1", "2", "4", "5", "7", "8"]


def test_a_set_of_tokens_goes_with_its_prompt_and_its_images(toy_pipeline: Path) -> None:
    pipeline = load_pipeline(str(toy_pipeline))
    pairs = [("a photo of a cat", "a photo of a dog"), ("a bird by a painter", "a bird")]
    few = Hardening(images=4, batch=4, preserved_batch=1, found=3, tokens=2)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]) * 1e6  # image i shows prompt i % 2
    images = Originals(signs.view(1, 4, 1, 1, 1).expand(1, 4, 4, 8, 8), torch.zeros(1, 4, 8, 8), [0])
    asked = Wording(["cat"], [[("a cat", "a dog")]], [pairs], ["tree"], ["{}"])
    found = torch.randn(1, 3, 2, 32, generator=torch.Generator().manual_seed(seeded(5)))
    material = Material(pipeline, asked, images, few, 1)
    known = [encode_all_attacked(pipeline, [pairs[k % 2][0]], found[0, k : k + 1])[0][0] for k in range(3)]
    goals = backbone_of(pipeline).encode([goal for _, goal in pairs])[0]
    seen = set()
    for step in range(8):
        samples = samples_of(material, found, 0, step, 7.5)
        for row in range(few.plain_batch, few.batch):
            gaps = [float((samples.text[0][row] - own).abs().max()) for own in known]
            k = gaps.index(min(gaps))
            close(samples.text[0][row], known[k], FLOAT32_PASS)
            close(samples.goal[0][row], goals[k % 2], FLOAT32_PASS)
            assert samples.noisy[row].mean().sign() == (1, -1)[k % 2]
            seen.add(k)
    assert seen == {0, 1, 2}


def test_what_is_preserved_beside_styles_is_to_half_in_a_style(toy_pipeline: Path) -> None:
    names = ["tree", "bird", "tree in the style of Monet"]
    shown = [0, 1, 0, 1, 0, 1, 0, 2]
    signs = torch.tensor([-1.0 if name == 2 else 1.0 for name in shown]) * 1e6
    images = Originals(torch.zeros(2, 1, 4, 8, 8), signs.view(8, 1, 1, 1).expand(8, 4, 8, 8), shown)
    few, pipeline = Hardening(images=1, batch=2, preserved_batch=8, tokens=2), load_pipeline(str(toy_pipeline))
    for concepts, count in (([PAINTER, PAINTER], 4), ([PAINTER, SHIP], 2), ([PAINTER], 0), ([SHIP, SHIP], 0)):
        asked = wording_of(concepts, [["a {}"]] * len(concepts), names, {}, {})
        assert asked.in_style(8) == count
        material, found = Material(pipeline, asked, images, few, 1), torch.zeros(len(concepts), 3, 2, 32)
        rows = [samples_of(material, found, 0, step, 7.5).noisy[2:10].mean((1, 2, 3)).sign() for step in range(6)]
        drawn = torch.stack(rows)
        assert (drawn[:, :count] < 0).all() and (drawn[:, count:] > 0).any()
        rest = drawn[:, count:]
        assert 3 * (rest < 0).sum() < rest.numel(), "one image in eight is in a style"
    asked = wording_of([PAINTER, PAINTER], [["a {}"]] * 2, names[:2], {}, {})
    plain = Material(pipeline, asked, replace(images, names=[0] * 8), few, 1)
    assert len(samples_of(plain, torch.zeros(2, 3, 2, 32), 0, 0, 7.5).t) == 18, "where no style is preserved, any name"


def test_names_next_to_the_targets_are_preserved_first(toy_pipeline: Path) -> None:
    pipeline = load_pipeline(str(toy_pipeline))
    names = ["house", "red house", "tree", "bird", "sky", "ground", "red ship", "dog"]
    vectors = centred(pipeline, "a photo of a {}", [*names, "ship"])
    nearest = {names[i] for i in (vectors[:-1] @ vectors[-1]).topk(2).indices.tolist()}
    asked = Wording(["ship"], [[]], [[]], names, ["{}"])
    few = [names[i] for i in preserved_names(pipeline, asked, Hardening(preserved_images=4), 1)]
    assert set(few[:2]) == nearest and len(set(few)) == 4
    all_of = preserved_names(pipeline, asked, Hardening(preserved_images=10), 1)
    assert sorted(all_of[:8]) == list(range(8)) and all_of[8:] == all_of[:2], "every name, then again"


def test_images_lie_in_memory_as_a_resumed_hardening_reads_them(toy_pipeline: Path) -> None:
    """In another layout the first tokens round differently, and so does all behind them."""
    asked = Wording(["ship"], [[]], [[("a ship", "a dog")]], ["tree", "bird"], ["a {}"])
    few = Hardening(images=2, preserved_images=2)
    found = generate_originals(load_pipeline(str(toy_pipeline)), asked, few, Look(steps=1, batch_size=2), 1)
    assert found.targets.is_contiguous() and found.preserved.is_contiguous()
