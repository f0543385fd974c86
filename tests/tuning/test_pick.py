"""Which trial is taken, and what counts for how much."""

import pytest

from mace_pl.errors import UserError
from mace_pl.tuning.measure import Scores, scores
from mace_pl.tuning.page import page, table
from mace_pl.tuning.pick import Tried, front, limit, pick
from mace_pl.tuning.prompts import Row, prompts_of, roles_of, rows_of

TRIED = [
    Tried(n, {"refine.identity": float(n)}, Scores(*pair))
    for n, pair in enumerate([(0.5, 1.0), (0.25, 0.75), (0.25, 0.5), (0.0, 0.5), (0.0, 0.5), (0.75, 0.75)])
]


def test_the_front_holds_what_nothing_beats_once() -> None:
    assert [one.number for one in front(TRIED)] == [3, 1, 0]


@pytest.mark.parametrize(
    ("most", "least", "taken"), [(None, None, 1), (0.0, None, 3), (None, 1.0, 0), (0.25, 0.75, 1), (0.1, 0.2, 3)]
)
def test_the_largest_h_within_the_limits_is_taken(most: float | None, least: float | None, taken: int) -> None:
    assert pick(TRIED, most, least).number == taken


def test_limits_that_nothing_meets_are_refused_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no single .* acc_e has Acc_e 0\.000, .* acc_s Acc_e .*, Acc_s 1\.000"):
        pick(TRIED, 0.0, 0.9)


@pytest.mark.parametrize("text", ["acc_s=0.1", "acc_e", "acc_e=two", "acc_e=2"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    assert limit("acc_e=0.02", "acc_e", "at_most") == 0.02 and limit(None, "acc_e", "at_most") is None
    with pytest.raises(UserError, match="at_most"):
        limit(text, "acc_e", "at_most")


def test_levels_and_near_names_count_as_much_as_the_others() -> None:
    seen = {Row("a ship", k, "ship", "target", "name"): k < 1 for k in range(4)}
    seen |= {Row("a red ship", 0, "ship", "target", "attributes"): True}
    seen |= {Row("a boat", 0, "boat", "near", "name"): False}
    seen |= {Row("a dog", k, "dog", "far", "name"): True for k in range(9)}
    found = scores(seen)
    assert (found.acc_e, found.acc_s) == ((0.25 + 1) / 2, 0.5)
    assert found.h == 2 * 0.375 * 0.5 / 0.875


def test_search_and_confirmation_share_no_prompt_and_no_seed() -> None:
    roles = roles_of(["ship"], ["boat"], ["boat", "dog", "cat", "house"], 2, 7)
    assert roles == roles_of(["ship"], ["boat"], ["boat", "dog", "cat", "house"], 2, 7)
    assert list(roles.values()) == ["target", "near", "far", "far"]
    first, second = (rows_of(roles, {}, part, None, 3, 1) for part in (0, 1))
    for field in ("prompt", "seed"):
        assert not {getattr(row, field) for row in first} & {getattr(row, field) for row in second}
    assert {row.level for row in first} == {"name", "attributes"}
    assert sum(row.pilot for row in first) * 3 == len(first)
    assert all(set(prompts_of("x", kind, 0, None)) == {"name"} for kind in ("person", "style"))


def test_the_page_shows_the_front_and_needs_no_other_file() -> None:
    columns, rows = table(TRIED)
    assert columns[-1] == "refine.identity" and [row[0] for row in rows] == ["3", "1", "0"]
    strong = [Tried(0, {"fuse.prior": 1.0, "strength.a cat": 0.5, "strength.dog": 1.0}, TRIED[0].scores)]
    assert table(strong)[0][4:] == ["fuse.prior", "strengths"] and table(strong)[1][0][5] == "a cat 0.50, dog 1.00"
    figures = {"search": {"acc_e": 0.5, "acc_s": 0.5, "h": 0.5}}
    trials = {"scored": 6, "cut short": 0}
    content = {"run": "<run>", "trials": trials, "rule": "r", "judge": "a", "confirmed": {"judge": "b"}}
    text = page(content | {"figures": figures, "gap": 0.25}, TRIED, Scores(0.5, 0.5), TRIED[1])
    assert "&lt;run&gt;" in text and 'class="taken"><td>1<' in text and "-0.250" in text
    assert "http" not in text.replace("http://www.w3.org", "")
