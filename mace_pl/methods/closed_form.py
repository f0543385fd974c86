"""The closed forms of MACE as pure tensor functions, one per equation.

Legend: N captions, T tokens, D text width, O output width of a key or value projection, R rank, K tokens in a sum.
All sums and solves are in float64; casting back is the caller's, at the boundary.

Source: Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, equations for closed-form refinement and
multi-LoRA fusion, in the factored form in which nothing depends on the layer but W and B.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mace_pl.errors import UserError

BLOCK = 256  # rows of a symmetric sum that are summed at once; wider blocks save less, narrower ones are slow


def gram(left_KD: Tensor, right_KD: Tensor) -> Tensor:
    """Σ_k left_k right_kᵀ, [D, D] in float64, from two lists of tokens [..., D] of equal length."""
    left = left_KD.reshape(-1, left_KD.shape[-1]).double()
    right = right_KD.reshape(-1, right_KD.shape[-1]).double()
    return left.T @ right


def metric(layers: Iterable[Tensor]) -> Tensor:
    """A = Σ_l W_lᵀ W_l, [D, D] in float64 on the CPU: eᵀ A e = Σ_l ‖W_l e‖² is the size of e as all layers see it.

    A is symmetric, so of each block of rows only what begins at its diagonal is summed, and mirrored at the end.
    """
    total: Tensor | None = None
    for layer in layers:
        W = layer.cpu().double()
        if total is None:
            total = W.new_zeros(2 * W.shape[1:])
        for start in range(0, len(total), BLOCK):
            rows = slice(start, start + BLOCK)
            total[rows, start:].addmm_(W[:, rows].T, W[:, start:])
    assert total is not None, "no layers"
    return total.triu() + total.triu(1).T


@dataclass(frozen=True)
class Preservation:
    """What is to be preserved: S = prior_weight·P + domain_weight·D (the λ_I term is added by each stage).

    Attributes:
        identity: λ_I, pulls the result towards the matrix that the stage starts from.
        prior: P [D, D] or None.
        prior_weight: λ_p (stage 1) or μ_p (stage 3).
        domain: D [D, D] or None.
        domain_weight: λ_d or μ_d.
        absolute: whether the weights are those of the equations; else parts of the targets' sum, see :func:`absolute`.
        growth: power of the number of targets by which the domain's weight is multiplied, see :func:`absolute`.
    """

    identity: float = 0.0
    prior: Tensor | None = None
    prior_weight: float = 0.0
    domain: Tensor | None = None
    domain_weight: float = 0.0
    absolute: bool = True
    growth: float = 0.0

    def statistics(self, width: int) -> Tensor:
        """prior_weight·P + domain_weight·D, [D, D] in float64."""
        total = torch.zeros(width, width, dtype=torch.float64)
        if self.prior is not None:
            total += self.prior_weight * self.prior.double()
        if self.domain is not None:
            total += self.domain_weight * self.domain.double()
        return total

    def describe(self) -> str:
        """The terms with their weights, naming those that are zero, for error messages."""
        terms = {
            "identity (lambda_I)": self.identity,
            "prior": self.prior_weight if self.prior is not None else 0.0,
            "domain": self.domain_weight if self.domain is not None else 0.0,
        }
        zero = [name for name, weight in terms.items() if weight == 0]
        return f"zero: {', '.join(zero) or 'none'}; " + ", ".join(f"{k} = {v:g}" for k, v in terms.items())


def even_weights(kept: Preservation, F_DD: Tensor) -> dict[str, float]:
    """The weight of each term that makes its trace that of F, the targets' sum: tr F / D, tr F / tr P, tr F / tr D.

    A term without statistics has 0.
    """
    trace = float(F_DD.double().trace())
    sizes = {"identity": float(len(F_DD))}
    for name, statistics in (("prior", kept.prior), ("domain", kept.domain)):
        sizes[name] = 0.0 if statistics is None else float(statistics.double().trace())
    return {name: trace / size if size else 0.0 for name, size in sizes.items()}


def absolute(kept: Preservation, F_DD: Tensor, targets: int) -> Preservation:
    """The same terms with the weights of the equations.

    Relative weights mean the same for any number of targets, prompts, captions and names, and any size of embeddings: F
    and the sums of the terms grow with these, their traces too, and T is the same.

    Args:
        kept: with weights of either sort; absolute ones that do not grow stay as they are.
        F_DD: Σ e eᵀ over the targets' tokens of the stage.
        targets: n, how many; the domain's weight is multiplied by n^growth.
    """
    if kept.absolute and not kept.growth:
        return kept
    even = dict.fromkeys(("identity", "prior", "domain"), 1.0) if kept.absolute else even_weights(kept, F_DD)
    return Preservation(
        kept.identity * even["identity"],
        kept.prior,
        kept.prior_weight * even["prior"],
        kept.domain,
        kept.domain_weight * even["domain"] * targets**kept.growth,
    )


def both_forms(kept: Preservation, F_DD: Tensor) -> str:
    """The absolute weights that count, each with the relative one behind it.

    Args:
        kept: with the weights of the equations.
        F_DD: Σ e eᵀ over the targets' tokens of the stage.
    """
    even = even_weights(kept, F_DD)
    weights = {"identity": kept.identity, "prior": kept.prior_weight, "domain": kept.domain_weight}
    said = [f"{name} {w:.4g} (relative {w / even[name]:.4g})" for name, w in weights.items() if w and even[name]]
    return ", ".join(said) or "none"


def factored(normal_DD: Tensor, preservation: Preservation, stage: str) -> Tensor:
    """The lower Cholesky factor L [D, D] of a symmetric positive definite ``normal`` = L Lᵀ, in float64.

    Raises:
        UserError: ``normal`` is singular; names the preservation terms that are zero and what to raise.
    """
    scale = float(normal_DD.diagonal().mean())
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(normal_DD)
    pivots = factor.diagonal()
    # a factor whose smallest pivot is rounding noise solves nothing: eps·D is the usual numerical-rank bound
    tiny = (pivots.min() / pivots.max().clamp_min(1e-300)) ** 2 < torch.finfo(torch.float64).eps * len(pivots)
    if int(info) != 0 or not torch.isfinite(pivots).all() or bool(tiny):
        raise UserError(
            f"{stage}: the system is singular (mean {scale:.3g}): the prompts span fewer than {len(normal_DD)} "
            f"dimensions and nothing fills the rest ({preservation.describe()}). Raise --model.{stage}.identity above "
            f"0, or give --model.prior or --model.domain statistics with a positive weight."
        )
    return factor


def solve_right(numerator_KD: Tensor, factor_DD: Tensor) -> Tensor:
    """X [K, D] = numerator · (L Lᵀ)⁻¹ from the Cholesky factor L."""
    return torch.cholesky_solve(numerator_KD.T, factor_DD).T


def refine(F_DD: Tensor, G_DD: Tensor, preservation: Preservation) -> Tensor:
    """Stage 1 for all layers at once: T = (G + S)(F + S)⁻¹, so that W' = W T.

    Minimises Σ‖W'e^f − W e^g‖² + λ_p Σ‖(W'−W)e^p‖² + λ_d Σ‖(W'−W)e^d‖² + λ_I‖W'−W‖².

    Args:
        F_DD: Σ e^f (e^f)ᵀ over the co-existing tokens of the target prompts.
        G_DD: Σ e^g (e^f)ᵀ, the tokens of the anchor prompts against those of the target prompts.
        preservation: the preservation terms with their weights.

    Returns:
        T [D, D] in float64.

    Raises:
        UserError: F + S is singular.
    """
    F, G = F_DD.double(), G_DD.double()
    S = preservation.statistics(len(F)) + preservation.identity * torch.eye(len(F), dtype=torch.float64)
    # (G + S)(F + S)⁻¹ = I + (G − F)(F + S)⁻¹: exact where target and anchor agree
    return torch.eye(len(F), dtype=torch.float64) + solve_right(G - F, factored(F + S, preservation, "refine"))


def plain_edit(F_DD: Tensor, G_DD: Tensor) -> Tensor:
    """T_e = I + (G − F)(F + I)⁻¹ [D, D]: the edit that preserves nothing but the weights, from means F and G.

    What it moves is what an edit would harm. Source: SPEED (arXiv 2503.07392), its filter of what is preserved.
    """
    identity = torch.eye(len(F_DD), dtype=torch.float64)
    factor = factored(F_DD.double() + identity, Preservation(identity=1.0), "refine")
    return identity + solve_right(G_DD.double() - F_DD.double(), factor)


def sizes(tokens_ND: Tensor, metric_DD: Tensor) -> Tensor:
    """‖e‖_A = √(eᵀ A e) [N] of tokens, with A of :func:`metric`; also of (T − I) e."""
    tokens = tokens_ND.double()
    return ((tokens @ metric_DD) * tokens).sum(-1).clamp_min(0).sqrt()


def leading_directions(F_DD: Tensor, factor_DD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The ``rank`` leading solutions of F v = λ S v, S = L Lᵀ: where F has most for what S has.

    Args:
        F_DD: Σ e eᵀ over the tokens of a target's prompts.
        factor_DD: L, the Cholesky factor of what is preserved.
        rank: R, at most D.

    Returns:
        λ [R], largest first, and vᵀ [R, D] with vᵀ S v = 1 and v's largest entry above 0, in float64.
    """
    half = torch.linalg.solve_triangular(factor_DD, F_DD.double(), upper=False)  # L⁻¹ F
    whitened = torch.linalg.solve_triangular(factor_DD, half.T, upper=False)  # L⁻¹ F L⁻ᵀ
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    v_DR = torch.linalg.solve_triangular(factor_DD.T, vectors.flip(1)[:, :rank], upper=True)
    largest = v_DR.gather(0, v_DR.abs().argmax(0, keepdim=True))
    return values.flip(0)[:rank], (v_DR * largest.sign()).T.contiguous()


def down_projection(F_DD: Tensor, factor_DD: Tensor, rank: int) -> Tensor:
    """A [R, D] of a LoRA of which B alone is trained: v of :func:`leading_directions`, times √(tr F / (3 D λ₁)).

    So all rows read equally much of what is preserved, and the first as much of the target's prompts as a row that is
    trained reads at its start in the mean: uniform up to 1/√D, its entries have the variance 1 / (3 D). After SuPLoRA
    (arXiv 2601.03305), whose fixed down-projections are of what is erased and beside what is preserved.
    """
    values, v_RD = leading_directions(F_DD, factor_DD, rank)
    return v_RD * (F_DD.double().trace() / (3 * len(F_DD) * values[0])).sqrt()


def moved_by(before_DD: Tensor, after_DD: Tensor, F_DD: Tensor, metric_DD: Tensor) -> float:
    """‖(T − T_0) e‖_A / ‖T_0 e‖_A over tokens with Σ e eᵀ = F: how far another T moves their keys and values.

    Args:
        before_DD: T_0.
        after_DD: T.
        F_DD: of the tokens.
        metric_DD: A of :func:`metric`.
    """
    T_0, F = before_DD.double(), F_DD.double()
    now, then = (float(((metric_DD @ M) * (M @ F)).sum().clamp_min(0).sqrt()) for M in (after_DD.double() - T_0, T_0))
    return now / then if then else 0.0


@dataclass(frozen=True)
class Fusion:
    """Stage 3 in its compact form: W*_l = W_l R + Σ_i B_{l,i} A*_{l,i}.

    Attributes:
        R: [D, D] in float64, shared by all layers.
        factor: the Cholesky factor of M [D, D].
        own: Σ F_i + λ_I I [D, D], what agrees with stages 1 and 2.
    """

    R: Tensor
    factor: Tensor
    own: Tensor

    def fused(self, A_KD: Tensor, F_DD: Tensor) -> Tensor:
        """A*_{l,i} = A_{l,i} F_i M⁻¹ [K, D] of one concept; K rows of A_{l,i}, of one layer or of all of them."""
        return solve_right(A_KD.double() @ F_DD.double(), self.factor)

    def again(self, T_DD: Tensor) -> Fusion:
        """Of the same concepts with another T: M stays. R = I + (T − I)(Σ F_i + λ_I I) M⁻¹, exact where T = I."""
        identity = torch.eye(len(self.own), dtype=torch.float64)
        return replace(self, R=identity + solve_right((T_DD.double() - identity) @ self.own, self.factor))


def fuse(T_DD: Tensor, F_DD: Tensor, preservation: Preservation) -> Fusion:
    """Stage 3 for all layers at once, Identity 4.

    Minimises Σ_ij‖W*e_ij − (W' + B_i A_i)e_ij‖² + μ_p Σ‖(W*−W)e^p‖² + μ_d Σ‖(W*−W)e^d‖² + λ_I‖W*−W'‖².
    With M = Σ F_i + μ_p P + μ_d D + λ_I I:  R = (T(Σ F_i + λ_I I) + μ_p P + μ_d D) M⁻¹.

    Args:
        T_DD: stage 1's matrix.
        F_DD: Σ F_i, with F_i = Σ_j e_ij e_ijᵀ over all tokens of concept i's target prompts.
        preservation: the preservation terms with their weights.

    Raises:
        UserError: M is singular.
    """
    identity = torch.eye(len(T_DD), dtype=torch.float64)
    damped = F_DD.double() + preservation.identity * identity
    factor = factored(damped + preservation.statistics(len(T_DD)), preservation, "fuse")
    return Fusion(identity, factor, damped).again(T_DD)


def apply_edit(W_OD: Tensor, R_DD: Tensor, A_RD: Tensor, B_OR: Tensor) -> Tensor:
    """W* = W R + B A* in float64, cast back to W's dtype; A_RD is the fused A* and may be of rank 0."""
    edited = W_OD.double() @ R_DD.double() + B_OR.double() @ A_RD.double()
    return edited.to(W_OD.dtype)


def apply_columns(W_OD: Tensor, T_EE: Tensor) -> Tensor:
    """W* = [W_1 T, W_2] in float64, cast back to W's dtype; W_1 are the first E columns of W, W_2 the others."""
    width = len(T_EE)
    edited = torch.cat([W_OD[:, :width].double() @ T_EE.to(W_OD.device).double(), W_OD[:, width:].double()], dim=1)
    return edited.to(W_OD.dtype)
