"""What will go wrong with a run, as far as the text encoder can tell, and what the run takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.named import sum_names
from mace_pl.concepts.wording import asks_for, holding
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import metric, sizes
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import name_tokens
from mace_pl.stages.estimate import Estimate
from mace_pl.stages.fuse import check_fusion
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.refine import refine_concepts

#: ‖e_anchor − e_target‖_A / ‖e_target‖_A below which both are nearly one to the model: on the bundled model a synonym
#: of the target has .07 to .14 (ship and boat, automobile and car), and two of its names .52 in the median
CLOSE = 0.1
SHOWN = 10  # names of those that a run has chosen


def anchor_distances(pipeline: Pipeline, concepts: Sequence[Concept]) -> dict[str, float]:
    """How far each anchor is from its target, as all keys and values see the last token of both, in the target's size.

    Args:
        pipeline: the original model.
        concepts: those without an anchor are left out.
    """
    A = metric(backbone_of(pipeline).key_values().values())
    found = {}
    for concept in (c for c in concepts if c.anchor):
        named = sum_names(pipeline, [concept.target, concept.anchor], {"last"})
        assert named is not None
        target, anchor = named.last
        found[concept.target] = float(sizes((anchor - target)[None], A) / sizes(target[None], A))
    return found


def warned(
    pipeline: Pipeline, concepts: Sequence[Concept], preserved: Sequence[str], styles: Collection[str] = ()
) -> list[str]:
    """A line for each thing that need not end the run and that will show in what it leaves.

    Args:
        pipeline: the original model.
        concepts: what is erased.
        preserved: names to preserve, by whatever setting.
        styles: names of styles, upper or lower case.
    """
    said = [
        f"The anchor of {target!r} is nearly the same to the model (distance {distance:.2f}, below {CLOSE}): "
        f"if the target is still seen afterwards, name another anchor."
        for target, distance in anchor_distances(pipeline, concepts).items()
        if distance < CLOSE
    ]
    targets = {name_tokens(pipeline, c.target): c.target for c in concepts}
    for concept in (c for c in concepts if c.anchor):
        erased = targets.get(name_tokens(pipeline, concept.anchor))
        if erased not in (None, concept.target):
            said.append(
                f"The anchor of {concept.target!r} is {concept.anchor!r}, which is erased itself: {concept.target!r} "
                f"becomes what the model no longer knows. Choose another anchor."
            )
    others = []
    for name in preserved:
        target = targets.get(name_tokens(pipeline, name))
        if target is None:
            others.append(name)
        elif name != target:
            said.append(f"{name!r} has the tokens of the target {target!r}: it is erased, not preserved.")
    known = {style.casefold() for style in styles}
    for target in (c.target for c in concepts if c.kind == "object" and c.target.casefold() in known):
        said.append(
            f"{target!r} is the name of a style, and is erased as an object. Write {{target: {target}, kind: style}} "
            f"if the style is meant."
        )
    return said + _worded([c.target for c in concepts], others)


def _worded(targets: Sequence[str], preserved: Sequence[str]) -> list[str]:
    """A line for each name that asks for a target in other words, and for targets that are no words.

    Args:
        targets: what is erased.
        preserved: names to preserve, without those that have the tokens of a target.
    """
    said = [
        f"The target {target!r} is a single sign, and changes every prompt that holds it."
        for target in targets
        if not any(map(str.isalnum, target)) or (len(target) == 1 and target.isascii())
    ]
    for target in targets:
        other = next((name for name in targets if name != target and asks_for(target, [name])), None)
        if other is not None:
            said.append(f"The target {target!r} asks for {other!r}, which is a target too. {other!r} alone is enough.")
    for name in preserved:
        if asks_for(name, targets):
            said.append(f"{name!r} is to be preserved and asks for a target: the two work against each other.")
    for name, word in holding(preserved, targets):
        said.append(f"{name!r} is to be preserved and holds {word!r}, which is erased: it may bring {word!r} back.")
    return said


def check_solvable(
    pipeline: Pipeline,
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    method: ClosedForm,
    wanted: Preserving,
) -> None:
    """Sum the prompts and solve stages 1 and 3, without what stage 2 would train; nothing is kept.

    Raises:
        UserError: a system is singular; the message says what to raise.
    """
    refined = refine_concepts(pipeline, concepts, templates, method, wanted, attend_padding=True)
    check_fusion(refined, method)


def show_chosen(wanted: Preserving, console: Console) -> None:
    """Which names the run has chosen to preserve, and why; a line where no name is preserved at all."""
    if not wanted.moved:
        if not (wanted.names or wanted.vocabulary or wanted.refine.domain is not None):
            said = "No names are preserved: --model.domain_names names some, --model.refine.domain weighs them."
            console.print(said, highlight=False)
        return
    table = Table(title="Preserved")
    for column in ("name", "moved", "of its size"):
        table.add_column(column)
    for name, (size, moved) in list(wanted.moved.items())[:SHOWN]:
        table.add_row(name, f"{moved:.3g}", f"{moved / size:.0%}" if size else "–")
    if len(wanted.moved) > SHOWN:
        table.add_row(f"and {len(wanted.moved) - SHOWN} more", "", "")
    console.print(table)
    console.print(
        f"model.domain_names: {len(wanted.moved)} of {wanted.among} names ({wanted.chosen_from}) are preserved, those "
        f"that the edit would move most; targets are left out. Moved: how far the last token, over all layers, and "
        f"as a part of its size in the original.",
        highlight=False,
    )


def show_estimates(estimates: Sequence[Estimate], disk: tuple[int, int], console: Console) -> None:
    """What the stages take on one device, and what of the disk.

    Args:
        estimates: in order.
        disk: bytes that are needed at most, and that are free.
        console: where it is printed.
    """
    table = Table(title="What the run takes on one device, estimated")
    for column in ("stage", "work", "time", "memory beside the model"):
        table.add_column(column)
    for row in estimates:
        table.add_row(row.stage, row.work, duration(row.taken.seconds), megabytes(row.taken.bytes))
    table.add_row("all", "", duration(sum(row.taken.seconds for row in estimates)), "")
    console.print(table)
    needed, free = disk
    console.print(f"Disk: {megabytes(needed)} at most, {megabytes(free)} are free.", highlight=False)
    if needed > free:
        console.print("The disk is too small: free some of it, or choose another --output_dir.", highlight=False)


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def megabytes(size: float) -> str:
    """In MB of 2^20 bytes."""
    return f"{size / 2**20:,.1f} MB"
