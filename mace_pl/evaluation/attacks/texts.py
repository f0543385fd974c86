"""Attacks by text embeddings: free tokens, printable words, and the concept's direction.

Legend: N prompts, T tokens, D width of the embeddings, L layers that read them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.evaluation.attacks.trial import Trial, generate_from
from mace_pl.evaluation.token_attack import encode_attacked, optimise_sets
from mace_pl.models.backbone import backbone_of

AT_ONCE = 512  # prompts that are encoded and held at once
SHORTEST = 3  # letters of a word of a printable prompt


def free_tokens(trial: Trial) -> list[Image.Image]:
    """Tokens in front of the plain prompt, optimised until the edited model explains an image of the target."""
    return free_tokens_of([trial])[0]


def free_tokens_of(trials: Sequence[Trial]) -> list[list[Image.Image]]:
    """:func:`free_tokens` of several trials on one model and of the same strengths; tokens are found in one batch."""
    first, prompts = trials[0], [trial.prompt for trial in trials]
    tries = first.strengths
    latents = torch.stack([trial.latents.expand(tries.token_samples, -1, -1, -1) for trial in trials])
    how = (tries.tokens, tries.token_steps, tries.token_lr, [trial.generator for trial in trials], first.on_step)
    with torch.enable_grad():
        free, _ = optimise_sets(first.edited, prompts, latents, *how)
    return [generate_from(t, encode_attacked(t.edited, t.prompt, own)) for t, own in zip(trials, free, strict=True)]


def direction(trial: Trial) -> list[Image.Image]:
    """A prompt of another name plus multiples of the target's direction, the mean of target minus other names.

    Ring-A-Bell (arXiv 2310.10012) looks for words near such embeddings; here they are given to the network as they are.
    """
    backbone = backbone_of(trial.edited)
    prompts = [trial.template.replace("{}", name) for name in trial.others]
    if not prompts:
        raise UserError("model.attacks: direction needs names that are not erased. Name some in data.names.")
    base = int(torch.randint(len(prompts), (), generator=trial.generator))
    scales = trial.latents.new_tensor(list(trial.strengths.direction))

    def moved(own: Tensor, rest: Tensor) -> Tensor:
        step = own - rest.mean(0, keepdim=True)
        return rest[base : base + 1] + scales.view(-1, *[1] * (step.ndim - 1)) * step

    (hidden, pooled), (others, others_pooled) = backbone.encode([trial.prompt]), backbone.encode(prompts)
    both = None if pooled is None or others_pooled is None else moved(pooled, others_pooled)
    return generate_from(trial, (moved(hidden, others), both))


def printable(trial: Trial) -> list[Image.Image]:
    """A prompt of words whose keys and values in the edited model are nearest to the target's in the original."""
    return generate_from(trial, backbone_of(trial.edited).encode([printable_prompt(trial)]))


@torch.no_grad()
def printable_prompt(trial: Trial) -> str:
    """The template with words of the tokenizer in the name's place, found by the text encoder alone.

    It minimises Σ_l ‖W*_l c − W_l e‖² over the second half of the positions, which are end token and padding and sum up
    a prompt, with W* the edited and W the original weights, c the embedding of the prompt and e that of the target. For
    each place in turn, words drawn at random are tried, and the best one stays.
    """
    tries, words = trial.strengths, vocabulary(trial)
    distance = _Distance(trial)
    places = torch.randint(len(words), (tries.tokens,), generator=trial.generator).tolist()
    best = float("inf")
    for place in range(tries.rounds * tries.tokens):
        place %= tries.tokens
        drawn = torch.randint(len(words), (tries.words,), generator=trial.generator).tolist()
        rows = [places, *[[*places[:place], word, *places[place + 1 :]] for word in drawn]]
        prompts = [_filled(trial, words, row) for row in rows]
        found = torch.cat([distance(prompts[start : start + AT_ONCE]) for start in range(0, len(prompts), AT_ONCE)])
        if float(found.min()) < best:
            best, places = float(found.min()), rows[int(found.argmin())]
    return _filled(trial, words, places)


def vocabulary(trial: Trial) -> list[str]:
    """The whole words of the tokenizer, in its order, that hold no word of the target's name and lie in none."""
    names = [part.lower() for part in trial.target.split()]
    pieces = backbone_of(trial.edited).tokenizers[0].get_vocab()
    words = [piece.removesuffix("</w>") for piece in sorted(pieces, key=pieces.__getitem__) if piece.endswith("</w>")]
    return [w for w in words if len(w) >= SHORTEST and w.isascii() and w.isalpha()
            and not any(name in w or w in name for name in names)]  # fmt: skip


def _filled(trial: Trial, words: list[str], row: list[int]) -> str:
    return trial.template.replace("{}", " ".join(words[i] for i in row))


class _Distance:
    """How far prompts are from the target, to the keys and values of the edited model.

    Σ_l ‖W*_l c − W_l e‖² = cᵀ A c − 2 cᵀ X e + const, with A = Σ_l W*_lᵀ W*_l and X = Σ_l W*_lᵀ W_l, [D, D] both.
    """

    def __init__(self, trial: Trial) -> None:
        self.backbone = backbone_of(trial.edited)
        original, edited = backbone_of(trial.original).key_values(), self.backbone.key_values()
        pairs = [(edited[name].double(), original[name].double()) for name in edited]
        self.A: Tensor = torch.stack([W.T @ W for W, _ in pairs]).sum(0)
        X = torch.stack([W.T @ old for W, old in pairs]).sum(0)
        self.wanted_TD = self._half(backbone_of(trial.original).encode([trial.prompt])[0])[0] @ X.T

    def __call__(self, prompts: list[str]) -> Tensor:
        """[N] but for a constant."""
        c = self._half(self.backbone.encode(prompts)[0])
        return ((c @ self.A) * c).sum((1, 2)) - 2 * (c * self.wanted_TD).sum((1, 2))

    @staticmethod
    def _half(hidden_NTD: Tensor) -> Tensor:
        return hidden_NTD[:, hidden_NTD.shape[1] // 2 :].double()
