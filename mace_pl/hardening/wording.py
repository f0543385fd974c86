"""What a hardening asks for: prompts of the targets, each with the prompt of its anchor, and prompts to preserve."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.templates import IMAGE_TEMPLATE, TEMPLATES
from mace_pl.concepts.wording import IN_STYLE_OF, asks_for
from mace_pl.errors import UserError

log = logging.getLogger(__name__)

IN_STYLE = 2  # names that are preserved in each style that is preserved
THINGS = ("dog", "house", "tree", "book")  # these, where styles alone are preserved
Pair = tuple[str, str]  # a prompt of a target, and what it shall mean instead


@dataclass(frozen=True)
class Wording:
    """Prompts.

    Attributes:
        targets: C names.
        plain: of each target, its prompts with those of its anchor.
        attacked: of each target the prompts behind free tokens, which its images are generated of too, with those of
            its anchor. Of a style they ask for it with each of the names, since nobody asks for a style of nothing.
        names: what is preserved.
        templates: prompts of these, with ``{}`` for the name; the first is that of their images.
        styles: how many of the targets are styles.
    """

    targets: Sequence[str]
    plain: Sequence[Sequence[Pair]]
    attacked: Sequence[Sequence[Pair]]
    names: Sequence[str]
    templates: Sequence[str]
    styles: int = 0

    def in_style(self, samples: int) -> int:
        """How many of the samples that preserve ask for a name in a style: half, where all of several targets are.

        What is next to a style are other styles, and these are few among the names: five manners that were erased
        took the others along. One alone holds better without it (both measured).
        """
        several = len(self.targets) > 1
        return round(samples * self.styles / (2 * len(self.targets))) if several else 0

    @property
    def styled(self) -> list[int]:
        """The numbers of the names that are in a style."""
        return [i for i, name in enumerate(self.names) if IN_STYLE_OF in name]

    def shown(self, target: int, images: int) -> Sequence[Pair]:
        """The attacked prompts of a target that so many images have room for; image and set i belong to i modulo these.

        Args:
            target: its number.
            images: of each target.
        """
        own = self.attacked[target]
        count = min(len(own), images)
        return [own[i * len(own) // count] for i in range(count)]


def wording_of(
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    names: Sequence[str],
    synonyms: Mapping[str, Sequence[str]],
    sentences: Mapping[str, Sequence[str]],
    setting: str = "preserved",
    styles: Collection[str] = (),
) -> Wording:
    """The prompts of a run.

    Args:
        concepts: its targets.
        templates: prompts of each, with ``{}`` for the name.
        names: what is preserved, but what :func:`asks_for` a target; the anchors where there are none.
        synonyms: other words by target, in the same templates.
        sentences: whole prompts that ask for a target, with its name or without, by target.
        setting: the option that names what is preserved.
        styles: those of the names that are styles: :func:`in_styles`.

    Raises:
        UserError: there is nothing to preserve.
    """
    erased = [c.target for c in concepts] + [word for words in synonyms.values() for word in words]
    plain, attacked, names = [], [], [name for name in in_styles(names, styles) if not asks_for(name, erased)]
    for concept, own in zip(concepts, templates, strict=True):
        words = [concept.target, *synonyms.get(concept.target, ())]
        pairs = [(t.replace("{}", word), filled(t, concept.anchor)) for word in words for t in own]
        said = [(s, _meant(s, concept)) for s in sentences.get(concept.target, ())]
        asked = _styled(concept, names) if concept.kind == "style" else []
        plain.append(pairs + said + asked)
        first = IMAGE_TEMPLATE[concept.kind]
        attacked.append([(filled(first, concept.target), filled(first, concept.anchor)), *said, *asked])
    kind = "person" if {concept.kind for concept in concepts} == {"person"} else "object"
    preserved = list(names) or list(dict.fromkeys(c.anchor for c in concepts if c.anchor))
    if preserved and not names:
        log.info(f"{setting}: no names are given, so the anchors are preserved: {', '.join(preserved)}")
    if not preserved:
        raise UserError(f"{setting} is empty, and the run has no anchor. Name what is to be preserved, as [dog, cat].")
    said_by = [IMAGE_TEMPLATE[kind], *TEMPLATES[kind]]
    found = sum(concept.kind == "style" for concept in concepts)
    return Wording([c.target for c in concepts], plain, attacked, preserved, said_by, found)


def in_styles(names: Sequence[str], styles: Collection[str]) -> list[str]:
    """The names, and in place of each style some of them in it: nobody asks for "a photo of a Monet".

    Args:
        names: what is preserved.
        styles: those of them that are styles, upper or lower case; others may be among them.
    """
    known = {style.casefold() for style in styles}
    others = [name for name in names if name.casefold() not in known]
    things = [name for name in others if IN_STYLE_OF not in name] or THINGS
    apart = max(1, len(things) // IN_STYLE)
    own = [name for name in names if name.casefold() in known]
    shown = [
        [things[(i + k * apart) % len(things)] for k in range(min(IN_STYLE, len(things)))] for i in range(len(own))
    ]
    styled = (f"{thing}{IN_STYLE_OF}{style}" for style, some in zip(own, shown, strict=True) for thing in some)
    return list(dict.fromkeys([*others, *styled]))


def filled(template: str, name: str) -> str:
    """The template with the name; the empty prompt without a name."""
    return template.replace("{}", name) if name else ""


def _styled(concept: Concept, names: Sequence[str]) -> list[Pair]:
    """Each name in the style, and in that of the anchor; names that have a style of their own are left out."""
    plain = [filled(IMAGE_TEMPLATE["object"], name) for name in names if IN_STYLE_OF not in name]
    return [
        (f"{one}{IN_STYLE_OF}{concept.target}", one + filled(f"{IN_STYLE_OF}{{}}", concept.anchor)) for one in plain
    ]


def _meant(sentence: str, concept: Concept) -> str:
    """The sentence with the anchor in the target's place; without the target's name the anchor's plain prompt."""
    if concept.anchor and concept.target in sentence:
        return sentence.replace(concept.target, concept.anchor)
    return filled(IMAGE_TEMPLATE[concept.kind], concept.anchor)
