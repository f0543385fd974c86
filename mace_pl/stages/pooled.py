"""Stage 1 for the pooled text of SDXL: the same closed form, from sums of pooled embeddings.

N prompts, E width of a pooled embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mace_pl.concepts.named import Named
from mace_pl.concepts.preservation import StageWeights, with_domain
from mace_pl.errors import Advice, UserError
from mace_pl.methods.base import ClosedForm, Sums
from mace_pl.methods.closed_form import Preservation, absolute, gram
from mace_pl.methods.edit import ConceptSums
from mace_pl.methods.gram_statistics import pooled_statistics
from mace_pl.models.backbone import Backbone, backbone_of
from mace_pl.models.protocols import Pipeline

log = logging.getLogger(__name__)

OFF = "or leave this path as it is with --model.pooled false"


def pooled_preservation(
    model: Mapping[str, Any], weights: StageWeights, method: ClosedForm, backbone: Backbone, width: int | None
) -> Preservation | None:
    """What the edit of the pooled text preserves, out of the files of statistics; None where it is not edited.

    Args:
        model: the settings of ``model``, of which ``pooled``, ``prior`` and ``domain`` count.
        weights: of stage 1.
        method: the closed form.
        backbone: the original model.
        width: E; None where the model has no pooled text.

    Raises:
        UserError: a file whose pooled sums are of another width.
    """
    if not model.get("pooled", True) or width is None or not backbone.pooled_layer():
        return None
    if not method.one_matrix:
        log.info(f"SDXL's pooled text is not edited: {method!r} is no matrix for all layers.")
        return None
    found, lacking = {}, []
    for name, weight in (("prior", weights.prior), ("domain", weights.domain)):
        found[name], without = pooled_statistics(model.get(name), width, f"model.{name}")
        lacking += without if weight else []
    if lacking:
        rank_zero_warn(
            f"{', '.join(lacking)}: no sums of pooled embeddings, as of files that were made before there were any. In "
            f"the edit of SDXL's pooled text the identity term, names and other files alone preserve. Make the file "
            f"again with `python erase.py cache`, {OFF}.",
            category=Advice,
        )
    sums = weights.identity, found["prior"], weights.prior, found["domain"], weights.domain
    return Preservation(*sums, weights.absolute, weights.growth)


def pooled_matrix(
    pipeline: Pipeline,
    method: ClosedForm,
    total: ConceptSums,
    preservation: Preservation | None,
    named: Named | None,
    blank: Tensor | None,
    targets: int,
) -> Tensor | None:
    """T [E, E] by which the layer reads pooled embeddings, in float64; None where it is not edited.

    A prompt has one pooled embedding where it has many tokens, and so have captions; λ_I alone does not shrink with the
    number of pairs, so it counts in proportion to them: λ_I · (pooled pairs) / (pairs of tokens). Relative weights do.

    Args:
        pipeline: the original model.
        method: the closed form.
        total: the sums over all targets.
        preservation: what is preserved, out of files.
        named: what is summed of the names that stay.
        blank: the empty prompt, [1, E], for a method that asks for it.
        targets: how many targets the sums hold.

    Raises:
        UserError: the system is singular.
    """
    if preservation is None or not total.pooled_pairs.numel():
        return None
    backbone, width = backbone_of(pipeline), len(total.F_pooled)
    bare, prompts = (None, None) if named is None else (named.pooled_bare, named.pooled)
    own = bare if method.tokens in ("last", "bare") else prompts
    preservation = with_domain(preservation, None if own is None else gram(own, own))
    pairs = float(total.pooled_pairs)
    if preservation.absolute:
        preservation = replace(preservation, identity=preservation.identity * pairs / float(total.pairs))
    preservation = absolute(preservation, total.F_pooled, targets)
    layers = {name: W[:, :width] for name, W in backbone.pooled_layer().items()}
    try:
        return method.solve(Sums(total.F_pooled, total.G_pooled, preservation, layers, pairs, bare, blank)).R
    except UserError as error:
        raise UserError(f"the pooled text of SDXL: {error} Statistics need pooled sums for it, {OFF}.") from error
