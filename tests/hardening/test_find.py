"""Found tokens that move on while the LoRA is trained against them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.seeds import seeded
from support.tolerances import BY_HAND, close

from mace_pl.evaluation.token_attack import embedding_table, encode_all_attacked, losses_of
from mace_pl.hardening.find import moved_tokens
from mace_pl.hardening.originals import Originals
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.step import Material, attacked_in
from mace_pl.hardening.wording import Wording
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline

FEW = Hardening(images=2, batch=4, preserved_batch=1, found=3, tokens=2, attack_moves=1e-3)


@pytest.fixture(scope="module")
def material(toy_pipeline: Path) -> Material:
    generator = torch.Generator().manual_seed(seeded(6))
    images = torch.randn(2, 2, 4, 8, 8, generator=generator)
    pairs = [[("a photo of a cat", "a photo of a dog")], [("a photo of a ship", "a photo of a house")]]
    asked = Wording(["cat", "ship"], pairs, pairs, ["tree"], ["{}"])
    return Material(load_pipeline(str(toy_pipeline)), asked, Originals(images, images[0], [0, 0]), FEW, 1)


@pytest.fixture
def found(material: Material) -> torch.Tensor:
    table, _ = embedding_table(material.pipeline)
    return table[torch.arange(12)].view(2, 3, 2, -1).clone()


def test_the_sets_of_a_step_go_down_the_attacks_loss_and_the_others_stay(
    material: Material, found: torch.Tensor
) -> None:
    moved = moved_tokens(material, found, 0, 3)
    attacked = attacked_in(material, 3, 0, 3)
    assert [one.target for one in attacked] == [0, 1] and not torch.equal(moved, found)
    noise, t = drawn(material, 3)
    for i, one in enumerate(attacked):
        before, after = found[one.target, one.found], moved[one.target, one.found]
        first, last = (loss_of(material, one, tokens, noise[i], t[i]) for tokens in (before, after))
        assert last < first
        moved[one.target, one.found] = before
    assert torch.equal(moved, found)


def drawn(material: Material, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and timesteps of the moves of a step, as they are drawn."""
    generator = stream(material.seed, "hardening", "moves", 0, step)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    return noise, torch.randint(backbone_of(material.pipeline).timesteps, (2,), generator=generator)


@torch.no_grad()
def loss_of(material: Material, one: object, tokens: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> float:
    text = encode_all_attacked(material.pipeline, [one.prompt], tokens[None])  # type: ignore[attr-defined]
    return float(losses_of(material.pipeline, one.latents[None], text, noise[None], t[None]).double())  # type: ignore[attr-defined]


def test_each_set_moves_as_far_however_many_pass_at_once(material: Material, found: torch.Tensor) -> None:
    scale = embedding_table(material.pipeline)[1]
    for far, at_once in ((0.1, 18), (0.1, 1), (0.2, 18)):
        few = replace(FEW, attack_moves=far, samples_at_once=at_once)
        moves = (moved_tokens(replace(material, settings=few), found, 1, 0) - found) / scale
        lengths = moves.square().mean((2, 3)).sqrt()
        one, other = (lengths[sample.target, sample.found] for sample in attacked_in(material, 3, 1, 0))
        close(torch.stack([one, other]), torch.full((2,), far), BY_HAND)
        assert int((lengths > 0).sum()) == 2
