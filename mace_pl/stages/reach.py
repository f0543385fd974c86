"""What an edit leaves within reach of its targets, and what it does to the names beside them, without an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mace_pl.concepts.named import sum_names
from mace_pl.methods.best_embedding import Seen
from mace_pl.models.attention_layers import reads_image_only
from mace_pl.models.backbone import backbone_of
from mace_pl.models.cross_attention import key_value_names
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import names_beside
from mace_pl.run import Run

NEAREST = 5  # preserved names of each target


@torch.no_grad()
def reach(
    pipeline: Pipeline,
    original: Mapping[str, Tensor],
    edited: Mapping[str, Tensor],
    grams: Mapping[str, Callable[[], Tensor]],
    preserved: Sequence[str],
) -> dict[str, Any]:
    """By target: ``size`` and ``residual`` of the best embedding, how far its name ``moved``, and ``near``.

    Lengths are those that the keys and values see of the last token of a bare name; one is how far names are from their
    mean, the root of the mean square over targets and preserved names.

    Args:
        pipeline: its text encoder.
        original: weights that the edit may change, by layer name; the cross-attention keys and values count.
        edited: likewise, of the edit.
        grams: F [D, D] of each target, made when it is asked for.
        preserved: names; of the nearest to a target ``distance`` says how near, ``moved`` how far the edit moves them.
    """
    layers = [name for name in key_value_names(backbone_of(pipeline).network) if not reads_image_only(name)]
    seen = Seen.of((original[name], edited[name]) for name in layers)
    targets, names = list(grams), names_beside(pipeline, preserved, grams)
    named = sum_names(pipeline, [*targets, *names], ["last"])
    assert named is not None
    e, found = named.last.cpu(), {}
    apart = seen.lengths(e - e.mean(0)) if len(e) > 1 else seen.lengths(e)
    unit = float(apart.square().mean().sqrt())
    moved = (seen.moved(e) / unit).tolist()
    for place, target in enumerate(targets):
        size, residual = seen.reach(grams[target]())
        distances = seen.lengths(e[len(targets) :] - e[place]) / unit
        near = [
            {"name": names[n], "distance": float(distances[n]), "moved": moved[len(targets) + n]}
            for n in distances.argsort(stable=True).tolist()[:NEAREST]
        ]
        found[target] = {"size": size, "residual": residual, "moved": moved[place], "near": near}
    return found


def reach_of_run(
    run: Run,
    pipeline: Pipeline,
    original: Mapping[str, Tensor],
    edited: Mapping[str, Tensor],
    preserved: Sequence[str],
) -> dict[str, Any]:
    """:func:`reach` of an edit of a run's targets, whose sums lie on the disk."""

    def gram(target: str) -> Callable[[], Tensor]:
        return lambda: run.concept(target)[0].F

    grams = {target: gram(target) for target in run.targets}
    return reach(pipeline, original, edited, grams, preserved)
