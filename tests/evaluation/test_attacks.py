"""Attacks against diffusers' own denoising, or against what they say, on toy models of one and two text encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from support.families import family
from support.seeds import seeded
from support.tolerances import EXPLAINED, FLOAT32_PASS, above, close, same_images

from mace_pl.errors import UserError
from mace_pl.evaluation.attack_results import interval
from mace_pl.evaluation.attacks.denoising import denoised
from mace_pl.evaluation.attacks.finetune import finetune
from mace_pl.evaluation.attacks.probes import image
from mace_pl.evaluation.attacks.registry import ATTACKS, SIDE_BY_SIDE, check_attacks
from mace_pl.evaluation.attacks.texts import _Distance, printable_prompt, vocabulary
from mace_pl.evaluation.attacks.trial import Strengths, Trial
from mace_pl.evaluation.attacks.words import prompts_by_loss
from mace_pl.evaluation.token_attack import diffusion_loss
from mace_pl.models.backbone import backbone_of

FEW = Strengths(tokens=2, token_steps=1, token_samples=1, words=4, rounds=1, noise=(1.0, 1.5), direction=(1.0, 2.0))
FEW = replace(FEW, finetune=(1, 3), finetune_images=2)
CANDIDATES = {"free_tokens": 1, "printable": 1, "words_by_loss": 1, "direction": 2, "noise": 2, "completion": 2}
CANDIDATES |= {"image": 1, "finetune": 2}
Make = Callable[[str], Trial]


@pytest.fixture(scope="module")
def make(toy_pipeline: Path) -> Make:
    made: dict[str, Trial] = {}

    def trial(name: str) -> Trial:
        if name not in made:
            models = [family(name, toy_pipeline) for _ in range(2)]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeded(2))
                for number, model in enumerate(models):
                    for part in (model.unet, model.vae):
                        part.requires_grad_(False).eval()
                    if number:  # the edit
                        for layer, module in model.unet.named_modules():
                            if layer.endswith(("attn2.to_k", "attn2.to_v")):
                                module.weight.data.add_(torch.randn_like(module.weight))
            latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seeded(3)))
            made[name] = Trial(
                *models, "ship", "a photo of a {}", ["dog", "cat"], latents, 5, torch.Generator(), 4, 3.0, FEW
            )
        return replace(made[name], generator=torch.Generator().manual_seed(seeded(4)))

    return trial


def values(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).double() / 255


def plain(model: Any, trial: Trial) -> torch.Tensor:
    """The image of the plain prompt by diffusers' own call."""
    before, model.scheduler = model.scheduler, DDIMScheduler.from_config(model.scheduler.config)
    model.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": trial.steps, "guidance_scale": trial.guidance, "negative_prompt": ""}
    shown = model(trial.prompt, generator=torch.Generator().manual_seed(trial.seed), **settings).images
    model.scheduler = before
    return values(shown)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd2_v"])
def test_denoising_is_that_of_diffusers_up_to_the_step_where_models_change(make: Make, name: str) -> None:
    trial = make(name)
    edited, original = plain(trial.edited, trial), plain(trial.original, trial)
    assert not torch.equal(edited, original)
    close(values(denoised(trial)), edited, FLOAT32_PASS)
    close(values(denoised(trial, by_original=trial.steps)), original, FLOAT32_PASS)
    between = values(denoised(trial, by_original=2))
    assert not torch.equal(between, edited) and not torch.equal(between, original)


def test_noise_of_one_is_that_of_ddpm_and_more_is_more(make: Make) -> None:
    trial = make("sd1")
    alone = values(denoised(trial, noise=(1.0,)))
    both = values(denoised(make("sd1"), noise=(1.0, 1.5)))
    close(both[:1], alone, FLOAT32_PASS)  # the same noise for each candidate
    assert not torch.equal(both[0], both[1])
    still = values(denoised(make("sd1"), noise=(0.0,)))
    assert not torch.equal(still, alone)


def test_an_image_is_kept_the_more_the_less_noise_it_gets(make: Make) -> None:
    trial = make("sd1")
    little = replace(trial, strengths=replace(FEW, image=0.25))
    much = replace(trial, strengths=replace(FEW, image=1.0))
    nearest = values(denoised(trial, trial.latents, skipped=trial.steps))
    far, near = ((values(image(one)) - nearest).square().mean() for one in (much, little))
    assert near < far


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("attack", list(ATTACKS))
def test_an_attack_gives_its_candidates_and_leaves_the_models_alone(make: Make, name: str, attack: str) -> None:
    trial = make(name)
    before = [{k: v.clone() for k, v in m.unet.state_dict().items()} for m in (trial.original, trial.edited)]
    images = ATTACKS[attack](trial)
    assert len(images) == CANDIDATES[attack]
    for model, weights in zip((trial.original, trial.edited), before, strict=True):
        assert all(torch.equal(value, weights[key]) for key, value in model.unet.state_dict().items())
    again = ATTACKS[attack](make(name))
    assert torch.equal(values(images), values(again))


@pytest.mark.parametrize("attack", list(SIDE_BY_SIDE))
def test_trials_side_by_side_are_those_of_each_alone(make: Make, attack: str) -> None:
    def trials() -> list[Trial]:
        first, second = make("sd1"), make("sd1")
        other = replace(
            second, template="a picture of a {}", seed=6, generator=torch.Generator().manual_seed(seeded(7))
        )
        return [replace(one, strengths=replace(FEW, token_steps=3)) for one in (first, other)]

    together, alone = SIDE_BY_SIDE[attack](trials()), [ATTACKS[attack](one) for one in trials()]
    for both, one in zip(together, alone, strict=True):
        same_images(both, one)
    assert not torch.equal(values(together[0]), values(together[1]))


def losses(trial: Trial, prompts: list[str], latents: torch.Tensor) -> list[float]:
    """The edited model's loss on images of the target, over noises that no attack has seen."""
    generator = torch.Generator().manual_seed(seeded(9))
    noise = torch.randn(32, 4, 8, 8, generator=generator)
    t = torch.randint(1000, (32,), generator=generator)
    backbone = backbone_of(trial.edited)
    with torch.no_grad():
        texts = [backbone.encode([prompt]) for prompt in prompts]
        rows = latents.repeat(32 // len(latents), 1, 1, 1)
        return [float(diffusion_loss(trial.edited, rows, text, noise, t)) for text in texts]


def test_words_by_loss_explain_the_image_better_than_others(make: Make) -> None:
    trial = make("sd1")
    few = replace(trial.strengths, token_steps=20, token_samples=4)
    (found,) = prompts_by_loss([replace(trial, strengths=few)])
    words = found.removesuffix(" a photo of a ship").split()
    known = vocabulary(trial)
    assert len(words) == 2 and set(words) <= set(known)
    others = [f"{first} {second} a photo of a ship" for first, second in zip(known, known[1:], strict=False)]
    best, *rest = losses(trial, [found, *others], trial.latents)
    assert best < sorted(rest)[len(rest) // 2]


def test_fine_tuning_learns_the_image_and_is_taken_back(make: Make) -> None:
    trial = make("sd1")
    (before,) = losses(trial, [trial.prompt], trial.latents)
    after: list[float] = []

    def look() -> None:
        after.extend(losses(trial, [trial.prompt], trial.latents))

    more = replace(trial.strengths, finetune=(12,), finetune_images=1, finetune_lr=1e-3)
    finetune(replace(trial, strengths=more, on_step=look))
    above(1 - after[11] / before, EXPLAINED)  # behind it come the steps of denoising
    assert losses(trial, [trial.prompt], trial.latents) == [before]
    assert not any(parameter.requires_grad for parameter in trial.edited.unet.parameters())


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_printable_prompt_comes_nearer_and_does_not_hold_the_name(make: Make, name: str) -> None:
    found = printable_prompt(make(name))
    longer = make(name)
    better = printable_prompt(replace(longer, strengths=replace(FEW, rounds=3, words=16)))
    assert "ship" not in found and found.startswith("a photo of a ")
    words = found.removeprefix("a photo of a ").split()
    assert set(words) <= set(vocabulary(longer))
    first, last = _Distance(longer)([found, better]).tolist()
    assert last < first


def test_the_distance_is_that_of_all_keys_and_values(make: Make) -> None:
    trial = make("sd1")
    prompts, texts = ["a dog", "a photo of a cat"], []
    for words in (*prompts, trial.prompt):
        ids = trial.edited.tokenizer(words, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            texts.append(trial.edited.text_encoder(ids)[0][0, 77 // 2 :].double())
    total = []
    for text in texts[:2]:
        part = 0.0
        for layer, module in trial.edited.unet.named_modules():
            if layer.endswith(("attn2.to_k", "attn2.to_v")):
                original = trial.original.unet.get_submodule(layer).weight.double()
                part += float((text @ module.weight.double().T - texts[2] @ original.T).square().sum())
        total.append(part)
    found = _Distance(trial)(prompts)
    close(found[1] - found[0], torch.tensor(total[1] - total[0], dtype=torch.float64), FLOAT32_PASS)


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0}, {"noise": (0.5,)}, {"completion": ()}, {"image": 0.0}, {"finetune": (2, 1)}]
)
def test_strengths_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"model\.strengths\.{next(iter(wrong))}="):
        replace(FEW, **wrong)


def test_attacks_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"'magic' is no attack. Choose among free_tokens"):
        check_attacks(["noise", "magic"], "data.attacks")
    with pytest.raises(UserError, match="twice"):
        check_attacks(["noise", "noise"], "data.attacks")


def test_intervals_by_hand() -> None:
    for successes, n, wanted in (
        (0, 6, (0.0, 0.390)),
        (6, 6, (0.610, 1.0)),
        (10, 20, (0.299, 0.701)),
    ):
        assert [round(bound, 3) for bound in interval(successes, n)] == list(wanted)
