"""Captions of a known grammar give back its frames; what is no frame of a name is none."""

import itertools
import random
from collections import Counter

import pytest
from support.seeds import seeded

from mace_pl.concepts.concept import Concept, read_templates, templates_of
from mace_pl.concepts.frames import Frames
from mace_pl.concepts.templates import SETS, TEMPLATES

NAMES = ["ship", "bird", "horse", "horse face", "birthday cake", "C++", "Amélie", "pony"]


def frames(captions: list[str], names: list[str] = NAMES) -> Frames:
    found = Frames(names)
    found.add(captions)
    return found


def test_captions_of_a_grammar_give_back_its_frames_by_frequency() -> None:
    """Three openings, four names and three endings, each frame as often as its parts say."""
    openings, endings = {"a photo of a {}": 4, "this is the {}": 2, "{}": 1}, {"": 3, " on a red background": 2, "!": 1}
    names = ["ship", "bird", "horse face", "birthday cake"]
    expected = {a + b: 4 * m * n for (a, m), (b, n) in itertools.product(openings.items(), endings.items())}
    captions = [
        (a.replace("{}", name) + b)
        for (a, m), (b, n), name in itertools.product(openings.items(), endings.items(), names)
        for _ in range(m * n)
    ]
    random.Random(seeded(0)).shuffle(captions)
    found = frames([*captions, "nothing that is known", "a dog"])
    assert dict(found.templates(100)) == expected
    assert [number for _, number in found.templates(100)] == sorted(expected.values(), reverse=True)
    assert found.templates(1) == [("a photo of a {}", 48)]
    assert (found.captions, found.framed) == (len(captions) + 2, len(captions))


@pytest.mark.parametrize(
    ("caption", "frame"),
    [
        ("A Photo of a SHIP", "A Photo of a {}"),
        ("an airborne  ship ", "an airborne {}"),
        ("an Amélie", "a {}"),  # the article is that of the templates
        ("An Ame\u0301lie", "A {}"),  # composed otherwise
        ("a horse face at night", "a {} at night"),  # the longest name
        ("the ship's mast, seen from below.", "the {}'s mast, seen from below."),
        ("code in C++, printed", "code in {}, printed"),
        ("two ships", None),  # no place for the name as it stands
        ("a herd of ponies", None),
        ("a ship and three birds", None),  # a plural names its thing too
        ("a ship beside a bird", None),
        ("a ship beside a ship", None),
        ("shipping, a warship, a ship-shaped cake, C", None),  # other words
        ("a {ship}", None),
        ("a ship " + "on the wide, wide sea " * 10, None),  # too long for a prompt
    ],
)
def test_the_frame_of_a_caption(caption: str, frame: str | None) -> None:
    found = frames([]).frame(caption)
    assert (found and found[0]) == frame


def test_spellings_of_a_frame_count_together_once_per_caption() -> None:
    captions = ["A ship at sea.", "a bird at sea", "a horse at sea.", "A pony at sea.", "a ship, at sea"]
    found = frames(captions)
    assert found.templates(5) == [("A {} at sea.", 4)]  # as most captions spell it; the last stands around one name
    assert frames(["a ship, at sea"] * 3, ["ship"]).templates(5) == [("a {}, at sea", 3)]  # there is no other name


def test_equal_frequencies_stay_in_the_order_of_the_captions() -> None:
    captions = [frame.replace("{}", name) for frame in ("one {}", "my {}", "the {}") for name in ("ship", "bird")]
    assert frames(captions).templates(9) == [("one {}", 2), ("my {}", 2), ("the {}", 2)]


def test_a_named_set_is_taken_by_kind_and_covers_what_the_plain_one_lacks() -> None:
    concepts = [Concept("ship", "sky"), Concept("Amy", "a person", "person"), Concept("Ann", "art", "style")]
    for concept, own in zip(concepts, templates_of("varied", concepts), strict=True):
        assert own == read_templates("varied", concept.kind) == SETS["varied"][concept.kind]
        assert len(own) == len(set(own)) == 30 and all(template.count("{}") == 1 for template in own)
        words = Counter(word for template in own for word in template.replace(",", "").split())
        for what in ("background", "wall", "sky", "night", "middle", "left", "right", "corner", "yesterday", "friend"):
            assert words[what], (concept.kind, what)
        assert templates_of(None, [concept]) == [TEMPLATES[concept.kind]]
    assert templates_of({"style": "varied"}, concepts)[2] == SETS["varied"]["style"]
    with pytest.raises(ValueError, match=r"data\.templates=vary is no file\. .*sets: varied\."):
        read_templates("vary", "object")
