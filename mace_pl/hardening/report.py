"""What a hardening did, in figures: of each round the losses of attacks and training, and the seconds of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from mace_pl.files.markdown import markdown_table, plain
from mace_pl.files.screen import screen
from mace_pl.hardening.harden import State
from mace_pl.hardening.settings import Hardening

FEW = 10  # steps, at most half of a round's, over which a loss is averaged: it goes up and down with the timesteps

TITLE = "Hardening: losses of found tokens (diffusion), of targets and of what is preserved (distances)"
LOSSES = ("tokens", "targets", "preserved")


def report_of(state: State, targets: Sequence[str], settings: Hardening) -> dict[str, Any]:
    """The figures.

    Args:
        state: of a finished hardening.
        targets: their names.
        settings: of the hardening.
    """
    steps, rounds = settings.steps * len(targets), []
    few = min(FEW, max(steps // 2, 1))
    for number, attacks in enumerate(state.attacks):
        losses = state.losses[number * steps : (number + 1) * steps]
        ends = {"first": losses[:few], "last": losses[-few:]}
        own: dict[str, Any] = {
            "tokens": {when: mean(a[i] for a in attacks) for i, when in enumerate(("first", "last"))}
        }
        for i, what in enumerate(("targets", "preserved")):
            own[what] = {when: mean(pair[i] for pair in part) for when, part in ends.items()}
        rounds.append(own)
    seconds = {"attacks": round(state.seconds[0], 1), "training": round(state.seconds[1], 1)}
    return {"targets": list(targets), "settings": settings.inputs, "seconds": seconds, "rounds": rounds}


def rows_of(facts: Mapping[str, Any]) -> list[list[str]]:
    """A line of cells for each round."""
    rounds = enumerate(facts["rounds"], 1)
    return [[str(n), *(f"{own[name]['first']:.3g} → {own[name]['last']:.3g}" for name in LOSSES)] for n, own in rounds]


def spent(facts: Mapping[str, Any]) -> str:
    """What it took, in words."""
    seconds = facts["seconds"]
    return f"Seconds: {seconds['attacks']} to find tokens, {seconds['training']} to train"


def add_to_summary(file: Path, facts: Mapping[str, Any]) -> None:
    """The figures as a section of a run's summary, which is begun where there is none."""
    begun, targets = file.exists(), ", ".join(plain(target) for target in facts["targets"])
    with file.open("a", encoding="utf-8") as summary:
        summary.write("\n" if begun else f"# Hardened: {targets}\n\n")
        summary.write(f"## {TITLE}\n\n{markdown_table(('round', *LOSSES), rows_of(facts))}\n\n{spent(facts)}\n")


def show(facts: Mapping[str, Any]) -> None:
    """The figures as a table on the screen."""
    table = Table(title=TITLE)
    table.add_column("round")
    for name in LOSSES:
        table.add_column(name, justify="right")
    for row in rows_of(facts):
        table.add_row(*row)
    screen().print(table)
    screen().print(spent(facts), highlight=False)
