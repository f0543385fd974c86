"""What a step of the hardening minimises, beside the formula with one sample at a time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.seeds import seeded
from support.tolerances import BY_HAND, FLOAT32_GRADIENTS, FLOAT32_PASS, close

from mace_pl.hardening.adapter import Adapter, attached
from mace_pl.hardening.originals import Originals
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.step import Material, Samples, add_gradients, samples_of
from mace_pl.hardening.wording import Wording
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline

FEW = Hardening(rank=2, images=2, batch=4, preserved_batch=3, found=2, tokens=2, preserved_weight=7.0)
WORDING = Wording(
    ["cat"], [[("a cat", "a dog")]], [[("a photo of a cat", "a photo of a dog")]], ["tree", "bird"], ["a {}"]
)


@pytest.fixture
def material(toy_pipeline: Path) -> Material:
    generator = torch.Generator().manual_seed(seeded(3))
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    images = Originals(latents[:2][None], latents[2:], [0, 1])
    return Material(load_pipeline(str(toy_pipeline)), WORDING, images, FEW, 1)


@pytest.mark.parametrize(("guidance", "share"), [(5.0, 0.8), (1.0, 0.0)])
def test_a_name_is_there_with_the_empty_prompt_where_images_are_guided(
    material: Material, guidance: float, share: float
) -> None:
    samples = samples_of(material, torch.zeros(1, 2, 2, 32), 0, 0, guidance)
    close(samples.share, share, BY_HAND)
    assert samples.targets == 4 and samples.preserved == 3
    assert len(samples.t) == len(samples.text[0]) == len(samples.goal[0]) == (10 if share else 7)
    assert torch.equal(samples.text[0][4:], samples.goal[0][4:]), "what is preserved is asked for of both"
    if share:
        assert torch.equal(samples.noisy[4:7], samples.noisy[7:]) and torch.equal(samples.t[4:7], samples.t[7:])
        close(samples.text[0][7:], backbone_of(material.pipeline).encode([""])[0].expand(3, -1, -1), FLOAT32_PASS)
    material.pipeline.unet.register_to_config(time_cond_proj_dim=8)
    assert backbone_of(material.pipeline).empty_share(guidance) == 0, "a distilled network predicts once"


def by_hand(material: Material, samples: Samples, edited: Adapter) -> torch.Tensor:
    """Σ ‖·‖² of the samples / 4 + 7 Σ ‖d(p) − 0.8 d(∅)‖² of what is preserved / (3 √targets)."""
    weight = 7 / len(material.wording.targets) ** 0.5
    backbone = backbone_of(material.pipeline)

    def error(row: int) -> torch.Tensor:
        asked = backbone.predict(samples.noisy[row][None], samples.t[row][None], samples.text[0][row][None])
        edited.backbone.network.disable_adapters()
        goal = backbone.predict(samples.noisy[row][None], samples.t[row][None], samples.goal[0][row][None])
        edited.backbone.network.enable_adapters()
        return asked - goal.detach()

    found = sum((error(row).square().mean() / 4 for row in range(4)), torch.zeros(()))
    return found + sum(
        ((error(4 + i) - 0.8 * error(7 + i)).square().mean() * weight / 3 for i in range(3)), torch.zeros(())
    )


@pytest.mark.parametrize(("at_once", "count"), [(1, 1), (5, 1), (6, 1), (20, 1), (20, 4)])
def test_the_gradient_is_that_of_the_formula(material: Material, at_once: int, count: int) -> None:
    several = replace(
        WORDING, targets=list("abcd")[:count], plain=WORDING.plain * count, attacked=WORDING.attacked * count
    )
    images = replace(material.originals, targets=material.originals.targets.expand(count, -1, -1, -1, -1))
    few = replace(FEW, samples_at_once=at_once)
    material = replace(material, wording=several, originals=images, settings=few)
    backbone = backbone_of(material.pipeline)
    names = backbone.attention_layers("all")
    with attached(backbone, names, 2, 1) as adapter:
        for i, parameter in enumerate(adapter.parameters()):
            generator = torch.Generator().manual_seed(seeded(i))
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        samples = samples_of(material, torch.ones(count, 2, 2, 32), 0, 0, 5.0)
        targets, preserved = add_gradients(material, adapter, samples, {}, {}, 5.0)
        found = [parameter.grad.clone() for parameter in adapter.parameters()]
        for parameter in adapter.parameters():
            parameter.grad = None
        loss = by_hand(material, samples, adapter)
        loss.backward()
        close(found, [parameter.grad for parameter in adapter.parameters()], FLOAT32_GRADIENTS)
        close(targets + 7 / count**0.5 * preserved, float(loss.detach()), FLOAT32_PASS)


def test_the_learning_rate_falls_to_zero_over_all_rounds() -> None:
    settings = Hardening(rounds=2, steps=3, lr=0.6)
    close([settings.lr_at(step, 2) for step in (0, 6, 11)], [0.6, 0.3, 0.05], BY_HAND)
