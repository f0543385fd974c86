"""Equal prompts are encoded once, in full batches, and the sums are those of every prompt by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import family
from support.tolerances import FLOAT32_PASS, FLOAT32_SUMS, close

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.named import TEMPLATES
from mace_pl.concepts.tokens import matched_positions
from mace_pl.methods import CURE, RECE, SPEED, UCE, Mace, MaceRefinement
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import Preservation, gram
from mace_pl.models.backbone import backbone_of
from mace_pl.models.encoded_once import BATCH, encoded_once, stacked
from mace_pl.models.text_encoding import encode_both, text_parts
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.refine import Refined, refine_concepts

COLOURS = ("red", "blue", "green", "yellow")
TARGETS = [f"{colour} {name}" for colour in COLOURS for name in ("ship", "dog", "cat")]
PROMPTS = [
    f"{start} {{}}{end}" for start in ("a photo of a", "a drawing of a") for end in ("", " in the sky", " and art")
]
NAMES = [f"{colour} {name}" for colour in COLOURS for name in ("house", "bird")]
PRESERVATION = Preservation(1.0, domain_weight=1.0)


@pytest.fixture(scope="module")
def sdxl(toy_pipeline: Path) -> Any:
    return family("sdxl", toy_pipeline)


def refined(pipeline: Any, method: ClosedForm, names: list[str]) -> tuple[Refined, list[list[int]]]:
    """What stage 1 makes of twelve targets with two anchors; and how many prompts each text encoder was given."""
    concepts = [Concept(t, ("street", "ground")[i % 2] if method.anchored else "") for i, t in enumerate(TARGETS)]
    wanted = Preserving(PRESERVATION, PRESERVATION, names, pooled=PRESERVATION)
    encoders = text_parts(pipeline)[1]
    given: list[list[int]] = [[] for _ in encoders]
    hooks = [
        encoder.register_forward_hook(lambda module, args, out, own=own: own.append(len(out.hidden_states[0])))
        for encoder, own in zip(encoders, given, strict=True)
    ]
    try:
        found = refine_concepts(pipeline, concepts, [PROMPTS] * len(concepts), method, wanted, True)
    finally:
        for hook in hooks:
            hook.remove()
    return found, given


@pytest.mark.parametrize(
    ("method", "concepts", "names"),
    [
        (MaceRefinement(), 14 * len(PROMPTS), len(NAMES) * len(TEMPLATES)),  # twelve targets and two anchors
        (UCE(), 14, len(NAMES)),
        (RECE(), 14, len(NAMES)),
        (CURE(), 12, len(NAMES)),
        (SPEED(), 14, len(NAMES) + 1),  # and the empty prompt
        (Mace(UCE()), 12 * len(PROMPTS) + 14, len(NAMES) * len(TEMPLATES)),
    ],
    ids=["MaceRefinement", "UCE", "RECE", "CURE", "SPEED", "MACE on UCE"],
)
def test_every_prompt_is_encoded_once_in_full_batches(sdxl: Any, method: ClosedForm, concepts: int, names: int) -> None:
    for given in refined(sdxl, method, NAMES)[1]:
        assert sum(given) == concepts + names
        assert len(given) == -(-concepts // BATCH) + -(-len(NAMES) * (names // len(NAMES)) // BATCH) + names % len(
            NAMES
        )


@pytest.mark.parametrize("method", [MaceRefinement(), UCE(), RECE()], ids=lambda method: type(method).__name__)
def test_the_sums_are_those_of_prompts_one_by_one(sdxl: Any, method: ClosedForm) -> None:
    found, _ = refined(sdxl, method, [])
    templates = PROMPTS if method.tokens == "coexisting" else ["{}"]
    for i in (0, 7, 11):
        target, anchor = TARGETS[i], ("street", "ground")[i % 2]
        F = G = F_pooled = G_pooled = torch.zeros(())
        for template in templates:
            (e_f, p_f), (e_g, p_g) = (encode_both(sdxl, [template.replace("{}", name)]) for name in (target, anchor))
            own, other = matched_positions(sdxl.tokenizer, template, target, anchor, method.tokens)
            F, G = F + gram(e_f[0, own], e_f[0, own]), G + gram(e_g[0, other], e_f[0, own])
            assert p_f is not None and p_g is not None
            F_pooled, G_pooled = F_pooled + gram(p_f, p_f), G_pooled + gram(p_g, p_f)
        sums = found.sums[target]
        close([sums.F, sums.G, sums.F_pooled, sums.G_pooled], [F, G, F_pooled, G_pooled], FLOAT32_SUMS)


def test_requests_get_their_prompts_whenever_these_were_encoded(sdxl: Any) -> None:
    prompts = [f"{colour} {name}" for colour in COLOURS for name in NAMES]  # 32
    requests = [prompts[:3], [], [*prompts[:30], *TARGETS], [prompts[0], prompts[0]], prompts[20:], [*PROMPTS, *NAMES]]
    requests += [[f"{colour} {name}" for name in TARGETS for colour in COLOURS], [prompts[1], TARGETS[0]]]
    batches: list[int] = []

    def encode(asked: Any) -> Any:
        batches.append(len(asked))
        return backbone_of(sdxl).encode(asked)

    for request, rows in zip(requests, encoded_once(encode, requests), strict=True):
        assert set(rows) == set(request)
        if request:
            expected = [encode_both(sdxl, [prompt]) for prompt in request]
            text, pooled = stacked(rows, request)
            close(text, torch.cat([one[0] for one in expected]), FLOAT32_PASS)
            close(pooled, torch.cat([one[1] for one in expected if one[1] is not None]), FLOAT32_PASS)
    distinct = len({prompt for request in requests for prompt in request})
    assert batches == [BATCH] * (distinct // BATCH) + [distinct % BATCH]
