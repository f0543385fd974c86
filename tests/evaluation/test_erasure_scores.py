"""Erasure scores by hand, and their bootstrap against the binomial distribution that it has to follow."""

from __future__ import annotations

import math

import pytest
import torch
from support.seeds import seeded
from support.tolerances import BOOTSTRAP_MEAN, BY_HAND, COVERAGE, FLOAT64_SUMS, ONE_STEP, close

from mace_pl.evaluation.erasure_scores import (
    MIN_SEEDS,
    Groups,
    accuracies,
    clip_scores,
    estimated,
    limits,
    resampled,
    with_intervals,
    worst_first,
)
from mace_pl.evaluation.run_scores import by_seed, of_judge, run_results
from mace_pl.evaluation.words import Words, neighbours
from mace_pl.methods.metrics import ImageScores

GROUPS = Groups(erased=[0], preserved=[1, 2], synonyms=[3, 4], nearest=[2])


def binomial_quantile(n: int, p: float, share: float) -> int:
    """The smallest k with P(X ≤ k) ≥ share, from the definition."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= share:
            return k
    return n


@pytest.mark.parametrize(("seeds", "right"), [(40, 30), (200, 20), (10, 5)])
def test_the_bootstrap_of_a_mean_of_zeros_and_ones_is_binomial(seeds: int, right: int) -> None:
    values = torch.zeros(seeds, dtype=torch.float64)
    values[:right] = 1
    found = limits(resampled(seeds, samples=20_000) @ values)
    expected = [binomial_quantile(seeds, right / seeds, share) / seeds for share in (0.025, 0.975)]
    close([x * seeds for x in found], [x * seeds for x in expected], ONE_STEP)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Over every number of 100 seeds that may be right, each as often as it comes."""
    weights = resampled(100, samples=1000)
    values = torch.ones(101, 100, dtype=torch.float64).tril(-1)  # row k: k of 100 are right
    low, high = torch.quantile(values @ weights.T, torch.tensor([0.025, 0.975]).double(), dim=1)
    chance = torch.tensor([math.comb(100, k) * 0.7**k * 0.3 ** (100 - k) for k in range(101)], dtype=torch.float64)
    close(chance[(low <= 0.7) & (high >= 0.7)].sum(), 0.95, COVERAGE)


def test_weights_are_shares_and_always_the_same() -> None:
    weights = resampled(7, samples=50)
    close(weights.sum(1), torch.ones(50, dtype=torch.float64), FLOAT64_SUMS)
    assert torch.equal(weights, resampled(7, samples=50))
    assert len({tuple(row) for row in weights.tolist()}) > 40


def test_scores_by_hand() -> None:
    right = torch.tensor([[0.25, 0.5, 1.0, 0.0, 0.5]], dtype=torch.float64)
    found = {name: float(value) for name, value in accuracies(right, GROUPS).items()}
    assert found["acc_e"] == 0.25 and found["acc_s"] == 0.75 and found["acc_g"] == 0.25 and found["acc_n"] == 1.0
    close([found["h"], found["h_c"]], [0.75, 0.75], BY_HAND)
    # 2 / (1/0.9 + 1/0.6) = 0.72, whatever the synonyms are; without them H is H_c
    people = torch.tensor([[0.1, 0.4, 0.8, 1.0, 1.0]], dtype=torch.float64)
    close(accuracies(people, Groups([0], [1, 2], [3], []))["h_c"], 0.72, BY_HAND)
    close(accuracies(people, Groups([0], [1, 2], [], []))["h"], 0.72, BY_HAND)
    alone = accuracies(right, Groups([], [0, 1, 2], [], []))
    assert set(alone) == {"acc_s"}
    score = torch.tensor([[20.0, 30.0, 28.0, 21.0, 23.0]], dtype=torch.float64)
    close(clip_scores(score, GROUPS)["h_a"], 29 - 20, BY_HAND)


def test_a_change_is_paired_by_seed() -> None:
    seeds = 20
    before = (torch.rand(5, seeds, generator=torch.Generator().manual_seed(seeded(0))) < 0.5).double()
    after = before.clone()
    after[0] = 0
    found = with_intervals(before, after, GROUPS, accuracies)
    assert found["change"]["acc_s"] == 0 and found["change"]["intervals"]["acc_s"] == [0, 0]  # no seed differs
    low, high = found["after"]["intervals"]["acc_s"]
    assert low < found["after"]["acc_s"] < high
    assert found["after"]["acc_e"] == 0 and found["after"]["intervals"]["acc_e"] == [0, 0]


def test_too_few_seeds_have_no_interval() -> None:
    values = torch.ones(5, MIN_SEEDS - 1, dtype=torch.float64)
    assert with_intervals(values, values, GROUPS, accuracies)["after"]["intervals"] is None
    enough = torch.ones(5, MIN_SEEDS, dtype=torch.float64)
    assert with_intervals(enough, enough, GROUPS, accuracies)["after"]["intervals"]["acc_s"] == [1, 1]


def test_estimates_do_not_depend_on_the_samples() -> None:
    values = torch.rand(5, 12, generator=torch.Generator().manual_seed(seeded(2))).double()
    whole, spread = estimated(values, GROUPS, accuracies)
    close(float(whole["acc_s"]), float(values[1:3].mean()), BY_HAND)
    close(float(spread["acc_s"].mean()), float(whole["acc_s"]), BOOTSTRAP_MEAN)


def test_the_most_damaged_come_first() -> None:
    assert worst_first(["a", "b", "c", "d"], [1.0, 1.0, 0.5, 0.5], [0.9, 0.2, 0.5, 0.4]) == [1, 3, 0, 2]


WORDS = Words(["ship", "dog", "cat"], {"ship": ["boat"]})


def filled(seen: dict[str, list[int]]) -> ImageScores:
    """One image per word and seed, seen as the class that is listed."""
    metric = ImageScores(4, 1, 2, 3)
    for word, classes in seen.items():
        place = WORDS.all.index(word)
        own = torch.tensor([WORDS.names.index(WORDS.meaning[word])] * 2)
        cells = torch.tensor([[place, 0, seed] for seed in range(2)])
        chances = torch.nn.functional.one_hot(torch.tensor(classes), 3) * 0.7 + 0.1
        metric.update(
            cells,
            seen=torch.tensor(classes)[:, None],
            undetected=torch.zeros(2, 1, dtype=torch.bool),
            probability=chances.gather(1, own.unsqueeze(1)),
            empty=torch.zeros(2, dtype=torch.bool),
            clip_score=20 * torch.ones(2),
            distance=torch.ones(2),
            features=torch.ones(2, 3),
        )
    return metric


def tables_of(seen: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """By the one judge."""
    return of_judge(filled(seen).compute(), 0)


def test_tables_of_images_by_hand() -> None:
    before = tables_of({"ship": [0, 0], "dog": [1, 1], "cat": [2, 2], "boat": [0, 1]})
    after = tables_of({"ship": [1, 2], "dog": [1, 2], "cat": [2, 2], "boat": [1, 1]})
    found = run_results(before, after, WORDS, {"ship": None}, ["dog"])
    top1 = found["after"]["top1"]
    assert (top1["acc_e"], top1["acc_s"], top1["acc_g"]) == (0, 0.75, 0)
    assert (top1["acc_n"], top1["acc_f"]) == (0.5, 1)
    close(top1["h"], 3 / (1 + 1 / 0.75 + 1), BY_HAND)
    assert found["before"]["top1"]["acc_g"] == 0.5
    close(found["after"]["probability"]["by_word"]["dog"], (0.8 + 0.1) / 2, BY_HAND)
    assert [row["word"] for row in found["concepts"]] == ["dog", "cat", "ship", "boat"]
    assert found["concepts"][0]["seen_as"] == {"cat": 0.5} and found["concepts"][0]["nearest"]
    assert found["concepts"][2]["seen_as"] == {"cat": 0.5, "dog": 0.5}


def test_a_target_that_is_no_class_is_a_stated_gap() -> None:
    tables = tables_of({"ship": [0, 0], "dog": [1, 1], "cat": [2, 2], "boat": [0, 1]})
    found = run_results(tables, tables, WORDS, {"moon": None}, [])
    assert "acc_e" not in found["after"]["top1"] and "h" not in found["after"]["top1"]
    assert "'moon' is not in data.names" in found["missing"][0]


def test_words_that_were_not_generated_have_no_value() -> None:
    tables = tables_of({"ship": [0, 0], "dog": [1, 1], "cat": [2, 2]})
    values = by_seed(tables, WORDS)["top1"]
    assert bool(values[3].isnan().all()) and not bool(values[:3].isnan().any())


def test_shards_of_images_add_up() -> None:
    whole = filled({"ship": [0, 2], "dog": [1, 1]}).compute()
    parts = [filled({"ship": [0, 2]}).compute(), filled({"dog": [1, 1]}).compute()]
    for name, value in whole.items():
        close(parts[0][name] + parts[1][name], value, BY_HAND)


class Letters:
    """A tokenizer whose tokens are letters."""

    def __call__(self, name: str, add_special_tokens: bool) -> Letters:
        self.input_ids = [ord(letter) for letter in name]
        return self


def test_neighbours_by_embedding_and_by_shared_tokens() -> None:
    target, preserved = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
    found = neighbours(["ab"], ["c", "d", "bx"], target, preserved, Letters(), 2)
    assert found == {"ab": {"embedding": ["d", "bx"], "tokens": ["bx"]}}
