"""K-means of the empty prompt's tokens."""

import torch
from support.closed_forms import rand
from support.tolerances import FLOAT64_SOLVES, close

from mace_pl.methods.retained import centres


def test_centres_are_the_means_of_groups() -> None:
    groups = [100 * rand(1, 4, seed=i) + rand(5, 4, seed=10 + i) for i in range(3)]
    mixed = torch.cat(groups)[torch.randperm(15, generator=torch.Generator().manual_seed(1))]
    found = sorted(centres(mixed, 3).tolist())
    close(found, sorted(group.mean(0).tolist() for group in groups), FLOAT64_SOLVES)
    assert torch.equal(centres(mixed, 3), centres(mixed, 3))


def test_there_are_no_more_centres_than_tokens_and_none_where_none_is_asked() -> None:
    tokens = rand(2, 4, seed=1)
    assert centres(tokens, 0).shape == (0, 4)
    close(centres(tokens, 5), tokens, FLOAT64_SOLVES)
    close(centres(tokens[:1].expand(6, 4), 3)[0], tokens[0], FLOAT64_SOLVES)  # all of them equal
