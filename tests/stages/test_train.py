"""A step of stage 2 against a plain loop over layers, heads and pixels written from the equation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from support.tolerances import ATTENTION_SUMS, FLOAT64_SUMS, close
from torch import Tensor
from torch.nn import functional as F

from mace_pl.concepts.concept import Concept
from mace_pl.data.concepts import ConceptData
from mace_pl.methods.closed_form import Preservation
from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.methods.losses import importance_density
from mace_pl.methods.mace import Mace
from mace_pl.models.backbone import Backbone, backbone_of
from mace_pl.models.cross_attention import cross_attentions
from mace_pl.models.pipeline import load_pipeline
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.refine import Texts, refine_concepts
from mace_pl.stages.train import IDLE, Examples, Objective, attention_loss, rank_schedule, sample, schedule


@pytest.fixture
def backbone(toy_pipeline: Path) -> Backbone:
    return backbone_of(load_pipeline(str(toy_pipeline)))


def texts_of(backbone: Backbone, attend_padding: bool = True) -> Texts:
    templates = ["a photo of a {}", "a picture of the {} in the sky"]
    wanted = Preserving(Preservation(identity=1.0))
    concepts = [Concept("ship", "dog")]
    return refine_concepts(backbone.pipeline, concepts, [templates], Mace(), wanted, attend_padding).texts


def examples_of(backbone: Backbone, texts: Texts, objective: Objective) -> Examples:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    masks = torch.rand(3, 1, 16, 16, generator=generator) > 0.6
    return Examples(["ship"], texts, {0: latents}, {0: masks}, objective.density(backbone.timesteps))


def plain_loss(backbone: Backbone, x: dict[str, Tensor], squared: bool) -> float:
    """Σ over layers of ‖A[heads, pixels inside the mask, positions]‖, one entry after another."""
    maps: list[Tensor] = []

    class Kept(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):  # type: ignore[no-untyped-def]
            query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            key = attn.to_k(encoder_hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            maps.append((query @ key.transpose(-1, -2) * attn.scale).softmax(-1))
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    layers = cross_attentions(backbone.network).values()
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(Kept())
    backbone.predict(x["latents"][None], x["t"], x["text"][None])
    for layer, processor in zip(layers, before, strict=True):
        layer.set_processor(processor)
    total = 0.0
    for probabilities in maps:
        side = round(probabilities.shape[2] ** 0.5)
        inside = F.interpolate(x["mask"][None].float(), size=(side, side), mode="nearest").flatten() > 0
        entries = probabilities[0][:, inside][..., x["positions"]].double().square().sum()
        total += float(entries if squared else entries.sqrt())
    return total


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("attend_padding", [False, True])
def test_the_loss_equals_a_plain_loop(backbone: Backbone, squared: bool, attend_padding: bool) -> None:
    objective = Objective(seed=3, squared=squared)
    texts = texts_of(backbone, attend_padding)
    examples = examples_of(backbone, texts, objective)
    loras = ConceptLoRAs(backbone.network, ["ship"], 1, 3)
    for parameter in loras.parameters_list():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    found = attention_loss(backbone, loras, examples, objective, [0], 4, [0])
    with torch.no_grad():
        expected = plain_loss(backbone, sample(backbone, examples, objective, 0, 4), squared)
    close(found.item(), expected, ATTENTION_SUMS)


def test_padding_counts_only_where_it_is_asked_for(backbone: Backbone) -> None:
    with_padding, without = texts_of(backbone, True), texts_of(backbone, False)
    word = len(backbone.tokenizers[0]("ship").input_ids) - 2
    assert without.positions[0].sum(1).tolist() == [word, word]
    assert (with_padding.positions[0] >= without.positions[0]).all()
    assert with_padding.positions[0][:, -1].all() and not without.positions[0][:, -1].any()


def test_a_step_averages_over_its_images(backbone: Backbone) -> None:
    objective = Objective(seed=3, images_per_step=3)
    examples = examples_of(backbone, texts_of(backbone), objective)
    loras = ConceptLoRAs(backbone.network, ["ship"], 1, 3)
    whole = attention_loss(backbone, loras, examples, objective, [0], 2, [0, 1, 2])
    parts = [attention_loss(backbone, loras, examples, objective, [0], 2, [number]) for number in range(3)]
    close(whole, torch.stack(parts).sum(0), ATTENTION_SUMS)


def test_the_density_is_that_of_the_paper_and_steps_follow_it(backbone: Backbone) -> None:
    density = importance_density(1000)
    sigmoid = [1 / (1 + 2.718281828459045 ** (-0.05 * (t - 200))) for t in range(1000)]
    other = [1 / (1 + 2.718281828459045 ** (-0.05 * (t - 400))) for t in range(1000)]
    expected = torch.tensor([a - b for a, b in zip(sigmoid, other, strict=True)], dtype=torch.float64)
    close(density, expected / expected.sum(), FLOAT64_SUMS)
    texts = texts_of(backbone)
    for focused in (True, False):
        objective = Objective(seed=3, importance_sampling=focused)
        examples = examples_of(backbone, texts, objective)
        steps = torch.tensor([int(sample(backbone, examples, objective, 0, i)["t"]) for i in range(60)])
        inside = ((steps > 100) & (steps < 500)).float().mean()
        assert inside == 1 if focused else inside < 0.8  # of 60 uniform draws 0.4 are expected inside


def test_groups_follow_one_another_and_finished_steps_are_left_out() -> None:
    assert schedule([0, 2, 4], 2, 2, {}) == [
        {"concepts": [0, 2], "step": 0},
        {"concepts": [0, 2], "step": 1},
        {"concepts": [4], "step": 0},
        {"concepts": [4], "step": 1},
    ]
    assert schedule([0, 2], 2, 2, {0: 1, 2: 2}) == [{"concepts": [0], "step": 1}]
    assert schedule([0], 2, 1, {0: 2}) == []


def test_ranks_go_from_batch_to_batch_together_and_never_without_one() -> None:
    data = ConceptData([{"target": name, "anchor": "sky"} for name in ("ship", "dog", "cat")], steps_per_concept=2)
    first, second = (rank_schedule(data, rank, 2, 1, {}) for rank in range(2))
    assert [(batch["concepts"], batch["step"]) for batch in first] == [([0], 0), ([0], 1), ([2], 0), ([2], 1)]
    assert second == [{"concepts": [1], "step": 0}, {"concepts": [1], "step": 1}, IDLE, IDLE]
    done = dict.fromkeys(range(3), 2)
    assert rank_schedule(data, 0, 2, 1, done) == rank_schedule(data, 1, 2, 1, done) == [IDLE]
