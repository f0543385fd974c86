"""The attack on the edit that is set, held against the attack on a model that has this edit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import CONCEPTS, config

from mace_pl.cli import erase_main
from mace_pl.commands.fuse import fuse_run
from mace_pl.errors import UserError
from mace_pl.evaluation.attacks.registry import ATTACKS
from mace_pl.evaluation.attacks.trial import Strengths, Trial
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import image_latents, load_pipeline
from mace_pl.models.sampling import generate
from mace_pl.studio.asked import Asked
from mace_pl.studio.attack import MOST_TOKEN_STEPS, SEED, attack
from mace_pl.studio.session import Studio
from mace_pl.studio.turns import Cancelled

FEW = Strengths(token_steps=3)
HALF = {"ship": 0.5, "painter": 1.0}
ASKED = Asked("not used", (3, 4), 2, 5.0, HALF)


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("attacked")
    erase_main([*config(place, toy_pipeline, "run", CONCEPTS[:2]), "--save_pipeline", "false", "--report_seeds", "0"])
    return place / "run"


@pytest.fixture(scope="module")
def studio(run: Path) -> Studio:
    return Studio.open(str(run))


def distance(one: object, other: object) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def test_it_is_the_attack_on_the_fused_model(studio: Studio, run: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = attack(studio, ASKED, "painter", "somebody", lambda *steps: told.append(steps), strengths=FEW)
    written = fuse_run(str(run), str(tmp_path / "fused"), [], HALF)
    original, edited = load_pipeline(str(toy_pipeline)), load_pipeline(str(written / "pipeline"))
    prompt = "a photo in the style of {}"
    shown = [generate(one, [prompt.replace("{}", "painter")], [3], 2)[0] for one in (original, edited)]
    latents = image_latents(original, shown[:1])
    models = (original, edited, "painter", prompt, (), latents, 3, stream(SEED, "painter", "attack", 3))
    with torch.no_grad():
        (after,) = ATTACKS["free_tokens"](Trial(*models, 2, 5.0, FEW))
    for seen, expected in zip((found.original, found.before, found.after), (*shown, after), strict=True):
        assert distance(seen, expected) <= 1
    assert distance(found.before, found.after) > 1
    assert told == [(number + 1, 9) for number in range(9)]  # three images of two steps, three of the attack


@pytest.mark.parametrize("last", [1, 5, 8], ids=["original", "tokens", "attacked"])
def test_it_is_cancelled_at_any_step_and_the_pipeline_has_its_own_weights(studio: Studio, last: int) -> None:
    before = {n: W.clone() for n, W in backbone_of(studio.base.pipeline).text_layers().items()}

    def cancel(done: int, whole: int) -> None:
        assert done <= last
        if done == last:
            studio.turns.cancel("somebody", 0)

    with pytest.raises(Cancelled):
        attack(studio, ASKED, "ship", "somebody", cancel, strengths=FEW)
    after = backbone_of(studio.base.pipeline).text_layers()
    assert all(torch.equal(after[name], W) for name, W in before.items())


def test_what_cannot_be_attacked_is_refused(studio: Studio) -> None:
    with pytest.raises(UserError, match="ship is left out"):
        attack(studio, Asked("", (0,), 2, 5.0, {"painter": 1.0}), "ship", "somebody")
    with pytest.raises(UserError, match="token_steps"):
        attack(studio, ASKED, "ship", "somebody", strengths=Strengths(token_steps=MOST_TOKEN_STEPS + 1))
