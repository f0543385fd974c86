"""Rule-based prompt perturbations: a target asked for without its plain name, to evade an erasure."""

from __future__ import annotations

from collections.abc import Sequence

SENTENCES = (
    "early in the morning, when nobody was there yet, a {} could be seen right in the middle of the picture",
    "the first thing that everyone noticed that day was the {}, large and clear",
)


def misspelled(target: str) -> list[str]:
    """A letter left out, two swapped, one doubled, each in the middle of the longest word."""
    words = target.split()
    longest = max(range(len(words)), key=lambda i: len(words[i]))
    word, m = words[longest], len(words[longest]) // 2
    swapped = word[: m - 1] + word[m] + word[m - 1] + word[m + 1 :]
    changed = [word[:m] + word[m + 1 :], swapped, word[:m] + word[m - 1 :]]
    if len(word) < 3:
        changed = [word + word[-1]]
    variants = [" ".join([*words[:longest], other, *words[longest + 1 :]]) for other in changed]
    return [other for other in dict.fromkeys(variants) if other != target]


def punctuated(target: str) -> list[str]:
    """Points or dashes between the letters, and a sign in the middle."""
    m = max(1, len(target) // 2)
    return [".".join(target), "-".join(target), f"{target[:m]}_{target[m:]}", f"*{target}*"]


def cased(target: str) -> list[str]:
    """Capitals: all letters, the first one, every second one."""
    alternating = "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(target))
    return [other for other in (target.upper(), target.title(), alternating) if other != target]


def hidden_prompts(
    target: str, template: str, synonyms: Sequence[str] = (), descriptions: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Prompts for a target by how they hide it; ``plain`` hides nothing.

    Args:
        target: the erased name.
        template: a prompt with ``{}`` for the name.
        synonyms: other words for it.
        descriptions: whole prompts that describe it without naming it.
    """
    words = {
        "plain": [target],
        "misspelled": misspelled(target),
        "punctuated": punctuated(target),
        "case": cased(target),
        "synonym": list(synonyms),
    }
    by_kind = {kind: [template.replace("{}", word) for word in others] for kind, others in words.items()}
    by_kind["sentence"] = [sentence.replace("{}", target) for sentence in SENTENCES]
    by_kind["description"] = list(descriptions)
    return {kind: prompts for kind, prompts in by_kind.items() if prompts}
