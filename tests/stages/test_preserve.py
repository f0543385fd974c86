"""What an edit preserves: names summed as targets are, and those of a vocabulary that the edit would move most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import CONCEPTS, config
from support.tolerances import FLOAT32_SUMS, FLOAT64_SOLVES, close
from torch import Tensor

from mace_pl.cli import erase_main
from mace_pl.concepts.concept import Concept
from mace_pl.concepts.named import sum_names
from mace_pl.errors import UserError
from mace_pl.methods import SPEED, UCE, Mace
from mace_pl.methods.base import Sums, Tokens
from mace_pl.methods.closed_form import Preservation
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.refine import Refined, refine_concepts, sum_concepts

NAMES = ["cat", "bird", "house", "person", "street", "an image"]


@pytest.fixture(scope="module")
def pipeline(toy_pipeline: Path) -> Any:
    return load_pipeline(str(toy_pipeline))


def last(pipeline: Any, name: str) -> Tensor:
    """The embedding of the token before the end token."""
    (encoded,) = backbone_of(pipeline).encode([name])[0].double()
    return encoded[len(pipeline.tokenizer(name).input_ids) - 2]


def sums_of(pipeline: Any, tokens: Tokens) -> Tensor:
    named = sum_names(pipeline, NAMES, [tokens])
    assert named is not None
    return named.grams[tokens]


def refined(pipeline: Any, wanted: Preserving, method: Any = None) -> Refined:
    concepts = [Concept("ship", "dog"), Concept("painter", "art")]
    return refine_concepts(pipeline, concepts, [["a photo of a {}"]] * 2, method or UCE(), wanted, True)


def test_names_are_summed_over_the_tokens_of_the_method(pipeline: Any) -> None:
    expected = sum(torch.outer(last(pipeline, name), last(pipeline, name)) for name in NAMES)
    close(sums_of(pipeline, "last"), expected, FLOAT32_SUMS)
    whole = backbone_of(pipeline).encode(NAMES)[0].double().flatten(0, 1)
    close(sums_of(pipeline, "bare"), whole.T @ whole, FLOAT32_SUMS)


class DividedByZero(UCE):
    """A method that a user has written, whose edit is not finite."""

    def solve(self, sums: Sums) -> Edit:
        return Edit(sums.F / torch.zeros_like(sums.F))


def test_an_edit_that_is_not_finite_is_refused_by_its_method(pipeline: Any) -> None:
    with pytest.raises(
        UserError, match=r"not finite, nothing is written: model\.method DividedByZero\(strength=1\.0\)"
    ):
        refined(pipeline, Preserving(Preservation(1.0)), DividedByZero())


def test_stage_3_preserves_names_in_prompts_whatever_stage_1_sums(pipeline: Any) -> None:
    wanted = Preserving(Preservation(1.0, domain_weight=1.0), names=NAMES)
    preserved = refined(pipeline, wanted, Mace(UCE())).preserved
    close(preserved.refine.domain, sums_of(pipeline, "last"), FLOAT32_SUMS)
    close(preserved.fuse.domain, sums_of(pipeline, "coexisting"), FLOAT32_SUMS)


def test_a_method_that_reads_names_gets_their_last_tokens(pipeline: Any) -> None:
    preserved = refined(pipeline, Preserving(Preservation(1.0), names=[*NAMES, "ship"]), SPEED()).preserved
    close(preserved.named.last, torch.stack([last(pipeline, name) for name in NAMES]), FLOAT32_SUMS)


def test_the_names_that_move_most_are_preserved(pipeline: Any) -> None:
    preservation = Preservation(1.0, domain_weight=1.0)
    wanted = Preserving(preservation, names=["street"], vocabulary=[*NAMES, "ship"], affected=3)
    found = refined(pipeline, wanted)
    pairs = [("ship", "dog"), ("painter", "art")]
    F = sum(torch.outer(last(pipeline, t), last(pipeline, t)) for t, _ in pairs) / 2
    G = sum(torch.outer(last(pipeline, a), last(pipeline, t)) for t, a in pairs) / 2
    change = (G - F) @ torch.linalg.inv(F + torch.eye(len(F), dtype=torch.float64))
    moved, size = {}, {}
    for name in NAMES:
        if name != "street":  # preserved already
            e, layers = last(pipeline, name), [W.double() for W in backbone_of(pipeline).key_values().values()]
            moved[name] = sum(float((W @ change @ e).square().sum()) for W in layers) ** 0.5
            size[name] = sum(float((W @ e).square().sum()) for W in layers) ** 0.5
    most = sorted(moved, key=moved.__getitem__, reverse=True)[:3]
    assert list(found.preserved.moved) == most
    close(dict(found.preserved.moved), {name: [size[name], moved[name]] for name in most}, FLOAT32_SUMS)
    by_hand = refined(pipeline, Preserving(preservation, names=["street", *most]))
    close(found.edit.R, by_hand.edit.R, FLOAT64_SOLVES)


def test_a_run_says_which_names_it_preserves_and_how_far_they_would_move(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*config(tmp_path, toy_pipeline, "run", CONCEPTS[:1]), "--model.method", "UCE", "--report_seeds", "0"]
    names = ["--model.domain_vocabulary", json.dumps(NAMES), "--model.domain_affected", "2"]
    names += [
        "--model.domain_names",
        "null",
    ]  # what is chosen once is shown in a table
    erase_main([*args, *names, "--model.refine.domain", "1", "--save_pipeline", "false"])
    rows = json.loads((tmp_path / "run" / "preserved.json").read_text())
    assert [sorted(row) for row in rows] == [["moved", "name", "original"]] * 2
    said = capsys.readouterr().err
    assert f"2 of {len(NAMES)} names are preserved" in said and all(row["name"] in said for row in rows)


def test_a_method_that_trains_nothing_encodes_the_bare_names_alone(pipeline: Any) -> None:
    backbone, encoded = backbone_of(pipeline), []
    whole = type(backbone).encode

    class Counting(type(backbone)):  # type: ignore[misc]
        def encode(self, prompts: Any) -> Any:
            encoded.extend(prompts)
            return whole(self, prompts)

    sums, texts = sum_concepts(Counting(pipeline), [Concept("ship", "dog")], [["a photo of a {}"]], UCE(), True)
    assert encoded == ["ship", "dog"] and not texts.positions and not sums["ship"].F_all.any()
