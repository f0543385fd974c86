"""What the parser says of a value, in words, and how a command ends that cannot go on."""

from types import SimpleNamespace

import pytest
import torch
from support.runs import exit_message

from mace_pl.cli import COMMANDS, erase_main
from mace_pl.commands.calling import call
from mace_pl.commands.harden import harden_run
from mace_pl.errors import UserError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--harden.lr", "nan"], "harden.lr=nan must be a finite number."),
        (["--harden.rond", "2"], "harden.rond does not exist. The nearest that exists is harden.rounds."),
        (["--harden.attack_step", "2"], "harden.attack_step does not exist. The nearest that exists is harden.attack_"),
        (["--harden.layers", "crss"], "harden.layers=crss must be one of all, cross, self."),
        (["--harden.foo", "2"], "harden.foo does not exist. Choose from harden.rank, harden.layers, "),
        (["--wholly_other", "2"], "wholly_other does not exist. All that exist are in docs/options.md, and in --help"),
        (["--config", "/nowhere.yaml"], "--config /nowhere.yaml: there is no such file."),
        (["--synonyms", "{ship: boat}"], "synonyms={'ship': 'boat'} must be one of: lists of texts by name, as in"),
    ],
)
def test_values_of_another_type_are_named_in_words(given: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        call("harden", harden_run, ["--run", "nowhere", *given])
    assert str(refused.value).startswith(said)


def test_a_gpu_without_enough_memory_ends_the_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 8 GiB"
        )

    monkeypatch.setitem(COMMANDS, "fuse", SimpleNamespace(run=full))
    said = exit_message(["fuse", "--run", "nowhere"], capsys)
    assert "fuse: error: the GPU has too little memory left (CUDA out of memory)" in said
    assert "fewer images or concepts at once" in said and "\n" not in said


def test_other_errors_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setitem(COMMANDS, "fuse", SimpleNamespace(run=broken))
    with pytest.raises(RuntimeError, match="a fault"):
        erase_main(["fuse", "--run", "nowhere"])
