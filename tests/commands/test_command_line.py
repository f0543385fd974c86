"""What the parser says of a value, in words."""

import pytest

from mace_pl.commands.calling import call
from mace_pl.commands.harden import harden_run
from mace_pl.errors import UserError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--harden.lr", "nan"], "harden.lr=nan must be a finite number."),
        (["--harden.rond", "2"], "harden.rond does not exist. The nearest that exists is harden.rounds."),
        (["--synonyms", "{ship: boat}"], "synonyms={'ship': 'boat'} must be one of: lists of texts by name, as in"),
    ],
)
def test_values_of_another_type_are_named_in_words(given: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        call("harden", harden_run, ["--run", "nowhere", *given])
    assert str(refused.value).startswith(said)
