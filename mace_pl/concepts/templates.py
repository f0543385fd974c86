"""The project's own prompts, by kind of concept; ``{}`` is where the concept goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

OBJECT_TEMPLATES = [
    "a photo of a {}", "a photo of the {}", "{}", "the {}", "a picture of a {}", "a picture of the {}",
    "an image of a {}", "a drawing of a {}", "a painting of a {}", "a sketch of a {}", "a close-up of a {}",
    "a small {}", "a large {}", "a bright photo of a {}", "a dark photo of a {}", "a good photo of a {}",
    "a blurry photo of a {}", "a cropped photo of a {}", "a rendering of a {}", "an illustration of a {}",
    "a cartoon of a {}", "a poster of a {}", "a photo of one {}", "a photo of my {}", "this is a {}",
    "there is a {} here", "a {} in the middle", "a nice {}", "a strange {}", "a colorful {}",
]  # fmt: skip
PERSON_TEMPLATES = [
    "a photo of {}", "a picture of {}", "an image of {}", "{}", "a portrait of {}", "a close-up of {}",
    "a drawing of {}", "a painting of {}", "a sketch of {}", "an illustration of {}", "a rendering of {}",
    "a cartoon of {}", "a poster of {}", "a statue of {}", "a black and white photo of {}", "a bright photo of {}",
    "a dark photo of {}", "a blurry photo of {}", "a cropped photo of {}", "{} smiling", "{} in the street",
    "{} at the beach", "{} on a stage", "{} in a garden", "{} at a table", "{} reading a book", "{} wearing a hat",
    "{} looking at the camera", "{} talking to a friend", "this is {}", "a magazine cover with {}",
    "the face of {}",
]  # fmt: skip
STYLE_TEMPLATES = [
    "a photo in the style of {}", "a picture in {} style", "a drawing in the style of {}", "{} art", "art by {}",
    "a painting in the style of {}", "an image in the style of {}", "an illustration in {} style", "a sketch by {}",
    "a work in the style of {}", "a poster in {} style", "a scene in the style of {}", "a portrait in {} style",
    "a landscape in the style of {}", "a still life in {} style", "a house in the style of {}", "a tree in {} style",
    "a street in the style of {}", "an animal in {} style", "a person in the style of {}", "a car in {} style",
    "a cat in the style of {}", "a flower in {} style", "a cup in the style of {}", "a city in {} style",
    "a bird in the style of {}", "a face in {} style", "a fruit in the style of {}", "a boat in {} style",
    "a design in the style of {}",
]  # fmt: skip
NO_THING = 15  # of them, the first ones, name no thing
TEMPLATES = {"object": OBJECT_TEMPLATES, "person": PERSON_TEMPLATES, "style": STYLE_TEMPLATES}
#: a second set, of as many prompts: names, styles, backgrounds, positions and everyday sentences
VARIED_TEMPLATES = {
    "object": [
        "{}", "a {}", "the {}", "a photo of a {}", "a picture of the {}", "an image of a {}",
        "a drawing of a {}", "an oil painting of a {}", "a watercolor of a {}", "a cartoon of a {}",
        "pixel art of a {}", "a {} in the style of an old master", "a black and white photo of a {}",
        "a {} on a white background", "a {} on a blue background", "a photo of a {} in front of a wall",
        "a {} under a cloudy sky", "a picture of a {} at night",
        "a {} on the left", "a {} on the right", "a {} in the middle of the picture", "a small {} in the corner",
        "a large {} in the foreground", "in the distance, a {}",
        "this is a {}", "there is a {} in the picture", "here we can see a {}", "look, the {} is right there",
        "my friend showed me a photo of a {}", "yesterday I saw a {} for the first time",
    ],
    "person": [
        "{}", "a photo of {}", "a picture of {}", "an image of {}", "a portrait of {}", "the face of {}",
        "a drawing of {}", "an oil painting of {}", "a watercolor of {}", "a cartoon of {}",
        "pixel art of {}", "{} in the style of an old master", "a black and white photo of {}",
        "{} on a white background", "{} on a blue background", "a photo of {} in front of a wall",
        "{} under a cloudy sky", "a picture of {} at night",
        "{} on the left", "{} on the right", "{} in the middle of the picture", "{} far away, in the corner",
        "a close-up of {} in the foreground", "in the distance, {}",
        "this is {}", "there is {} in the picture", "here we can see {}", "look, {} is right there",
        "my friend showed me a photo of {}", "yesterday I saw {} for the first time",
    ],
    "style": [
        "{} style", "{} art", "art by {}", "a picture in the style of {}", "an image in {} style", "a work by {}",
        "a drawing of a house in the style of {}", "a painting of a tree by {}", "a portrait in {} style",
        "a landscape in the style of {}", "a still life in {} style", "a photo in the style of {}",
        "a cat in {} style", "a street in the style of {}", "a boat by {}",
        "a flower in {} style on a white background", "a bird in the style of {} on a blue background",
        "a chair by {} in front of a wall", "a city in {} style at night", "a field by {} under a cloudy sky",
        "on the left, a house in {} style", "a tree on the right, in the style of {}",
        "a person in the middle, {} style", "a small cup in the corner, by {}",
        "this is the style of {}", "it looks like {}", "here we can see a fruit in {} style",
        "somebody made this picture in {} style", "my friend likes the style of {}",
        "yesterday I saw a picture by {}",
    ],
}  # fmt: skip
#: sets that ``data.templates`` knows by name
SETS = {"varied": VARIED_TEMPLATES}
#: the prompt of the images that the original model generates
IMAGE_TEMPLATE = {"object": "a photo of a {}", "person": "a photo of {}", "style": "a photo in the style of {}"}


def style_templates(names: Sequence[str]) -> list[str]:
    """Prompts of a style: those that name no thing, and as many with some of the names in it, taken evenly.

    A style that was erased by the project's prompts alone stays with things that they do not name. On the bundled model
    a manner was still seen in .21 of the images by CLIP, all of frogs and airplanes (.07 by the convolutional judge);
    with fifteen of the model's names, none of which was asked for afterwards, in .06 (.02; five choices of the names).

    Args:
        names: what the model knows; the project's own prompts where there are fewer than the prompts that they replace.
    """
    own = TEMPLATES["style"]
    count = len(own) - NO_THING
    if len(names) < count:
        return list(own)
    shown = [names[int((i + 0.5) * len(names) / count)] for i in range(count)]
    return [*own[:NO_THING], *(f"a photo of a {name} in the style of {{}}" for name in shown)]


def askable(names: Sequence[str], targets: Iterable[str]) -> list[str]:
    """Names of a model that :func:`style_templates` may take: no target, in any case, and none that holds ``{}``."""
    erased = {target.casefold() for target in targets}
    return [name for name in names if name.casefold() not in erased and "{}" not in name]
