"""A printable attack by the network: words in front of the plain prompt that explain images of the target.

UnlearnDiffAtk (Zhang et al. 2024, arXiv 2310.11868) looks for tokens before a prompt that bring the edited model's own
diffusion loss on an image of the target down, by gradients and projection on words; so does this, with the nearest
words in place of its relaxation.

Legend: K words, V words of the vocabulary, D width of the input embeddings.
"""

from __future__ import annotations

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
    return generate_from(trial, backbone_of(trial.edited).encode([prompt_by_loss(trial)]))


def prompt_by_loss(trial: Trial) -> str:
    """Words and the plain prompt.

    Tokens move by Adam; in each step the prompt has the words whose embeddings are nearest to them by angle, and the
    gradient there moves the tokens. Of the last different sets of words the one with the least loss is taken.
    """
    tries, words = trial.strengths, vocabulary(trial)
    pieces = backbone_of(trial.edited).tokenizers[0].get_vocab()
    table_VD = embedding_table(trial.edited)[0][[pieces[f"{word}</w>"] for word in words]]
    unit_VD = torch.nn.functional.normalize(table_VD, dim=1)
    met: dict[tuple[int, ...], None] = {}

    def nearest(free_SKD: Tensor) -> Tensor:
        found = (torch.nn.functional.normalize(free_SKD, dim=2) @ unit_VD.T).argmax(2)
        row = tuple(found[0].tolist())
        met[row] = met.pop(row, None)  # the last one met is the last of all
        return table_VD[found]

    latents = trial.latents.expand(tries.token_samples, -1, -1, -1)
    how = (tries.tokens, tries.token_steps, tries.token_lr, [trial.generator], trial.on_step, nearest)
    with torch.enable_grad():
        optimise_sets(trial.edited, [trial.prompt], latents[None], *how)
    prompts = [f"{' '.join(words[i] for i in row)} {trial.prompt}" for row in list(met)[-LAST:]]
    return prompts[int(_losses(trial, prompts).argmin())]


@torch.no_grad()
def _losses(trial: Trial, prompts: list[str]) -> Tensor:
    """The diffusion loss of each prompt, with the same noises and timesteps."""
    backbone, count = backbone_of(trial.edited), COMPARED * trial.strengths.token_samples
    latents = trial.latents.expand(count, -1, -1, -1)
    noise = torch.randn(latents.shape, generator=trial.generator).to(latents)
    t = torch.randint(backbone.timesteps, (count,), generator=trial.generator).to(latents.device)
    losses = [diffusion_loss(trial.edited, latents, backbone.encode([one]), noise, t) for one in prompts]
    return torch.stack(losses)
