"""The project's own prompts, by kind of concept; ``{}`` is where the concept goes."""

from __future__ import annotations

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
TEMPLATES = {"object": OBJECT_TEMPLATES, "person": PERSON_TEMPLATES, "style": STYLE_TEMPLATES}
#: the prompt of the images that the original model generates
IMAGE_TEMPLATE = {"object": "a photo of a {}", "person": "a photo of {}", "style": "a photo in the style of {}"}
