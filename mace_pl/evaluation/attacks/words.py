"""A printable attack by the network: words in front of the plain prompt that explain images of the target.

UnlearnDiffAtk (Zhang et al. 2024, arXiv 2310.11868) looks for tokens before a prompt that bring the edited model's own
diffusion loss on an image of the target down, by gradients and projection on words; so does this, with the nearest
words in place of its relaxation.

Legend: S trials, K words, V words of the vocabulary, D width of the input embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mace_pl.evaluation.attacks.texts import vocabulary
from mace_pl.evaluation.attacks.trial import Trial, generate_from
from mace_pl.evaluation.token_attack import diffusion_loss, embedding_table, optimise_sets
from mace_pl.models.backbone import backbone_of

LAST = 8  # different sets of words, the last that were met, of which the best is taken
COMPARED = 4  # times as many noises as a step has, the same ones for each of these


def words_by_loss(trial: Trial) -> list[Image.Image]:
    """The plain prompt behind words of the tokenizer, found by the edited model's diffusion loss."""
    return words_by_loss_of([trial])[0]


def words_by_loss_of(trials: Sequence[Trial]) -> list[list[Image.Image]]:
    """:func:`words_by_loss` of several trials on one model, target and strengths; words are found in one batch."""
    prompts = prompts_by_loss(trials)
    return [generate_from(t, backbone_of(t.edited).encode([own])) for t, own in zip(trials, prompts, strict=True)]


def prompts_by_loss(trials: Sequence[Trial]) -> list[str]:
    """Words and the plain prompt of each trial.

    Tokens move by Adam; in each step the prompt has the words whose embeddings are nearest to them by angle, and the
    gradient there moves the tokens. Of the last different sets of words the one with the least loss is taken.
    """
    first = trials[0]
    tries, words = first.strengths, vocabulary(first)
    pieces = backbone_of(first.edited).tokenizers[0].get_vocab()
    table_VD = embedding_table(first.edited)[0][[pieces[f"{word}</w>"] for word in words]]
    unit_VD = torch.nn.functional.normalize(table_VD, dim=1)
    met: list[dict[tuple[int, ...], None]] = [{} for _ in trials]

    def nearest(free_SKD: Tensor) -> Tensor:
        found = (torch.nn.functional.normalize(free_SKD, dim=2) @ unit_VD.T).argmax(2)
        for own, row in zip(met, map(tuple, found.tolist()), strict=True):
            own[row] = own.pop(row, None)  # the last one met is the last of all
        return table_VD[found]

    latents = torch.stack([trial.latents.expand(tries.token_samples, -1, -1, -1) for trial in trials])
    generators = [trial.generator for trial in trials]
    how = (tries.tokens, tries.token_steps, tries.token_lr, generators, first.on_step, nearest)
    with torch.enable_grad():
        optimise_sets(first.edited, [trial.prompt for trial in trials], latents, *how)
    found = []
    for trial, own in zip(trials, met, strict=True):
        prompts = [f"{' '.join(words[i] for i in row)} {trial.prompt}" for row in list(own)[-LAST:]]
        found.append(prompts[int(_losses(trial, prompts).argmin())])
    return found


@torch.no_grad()
def _losses(trial: Trial, prompts: list[str]) -> Tensor:
    """The diffusion loss of each prompt, with the same noises and timesteps."""
    backbone, count = backbone_of(trial.edited), COMPARED * trial.strengths.token_samples
    latents = trial.latents.expand(count, -1, -1, -1)
    noise = torch.randn(latents.shape, generator=trial.generator).to(latents)
    t = torch.randint(backbone.timesteps, (count,), generator=trial.generator).to(latents.device)
    losses = [diffusion_loss(trial.edited, latents, backbone.encode([one]), noise, t) for one in prompts]
    return torch.stack(losses)
