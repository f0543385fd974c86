"""What SPEED retains (names that an edit would harm, noisy copies of them, the empty prompt), and an edit beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.closed_form import sizes


def retained_span(
    names_ND: Tensor | None, change_DD: Tensor, copies: int, threshold: float, size_DD: Tensor, noise_DD: Tensor
) -> Tensor:
    """The eigenvectors [D, r] with eigenvalues of at least the threshold of R = mean of e eᵀ over what is retained.

    That is the names that an edit moves at least as much as the average, and noisy copies of them.

    Args:
        names_ND: their tokens; without any R is zero.
        change_DD: T_e − I of the edit.
        copies: of each name, with seeded noise of standard deviation 1.
        threshold: above 0.
        size_DD: the metric of ‖(T_e − I) e‖.
        noise_DD: a metric; the noise lies where it is smallest, so that it changes least of what the layers see.

    Raises:
        UserError: these are all directions.
    """
    if names_ND is None:
        return change_DD[:, :0]
    moved = sizes(names_ND @ change_DD.T, size_DD)
    own = names_ND[moved >= moved.mean()]
    direction = torch.linalg.eigh(noise_DD)[1][:, :1]
    samples = torch.randn(copies, len(own), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([own[None], own + samples * direction.T]).reshape(-1, len(change_DD))
    basis_DK = torch.linalg.qr(torch.cat([own.T, direction], dim=1))[0]  # R is zero outside of it
    inner_MK = whole @ basis_DK
    values, V_KK = torch.linalg.eigh(inner_MK.T @ inner_MK / len(whole))
    found: Tensor = basis_DK @ V_KK[:, values >= threshold]
    if found.shape[1] == len(found):
        raise UserError(f"model.method.threshold={threshold}: no direction is left to edit. Raise it.")
    return found


def in_null_space(rows_KD: Tensor, F_DD: Tensor, U_DR: Tensor, C_DP: Tensor) -> Tensor:
    """Rows times N Q M [K, D]: N = I − U Uᵀ, M = (F N + I)⁻¹, Q = I − M C (Cᵀ N M C)⁻¹ Cᵀ N.

    N M = H⁻¹ N with H = N F N + I, which leaves what U spans as it is; H is symmetric, so one Cholesky factor does.

    Args:
        rows_KD: what is edited.
        F_DD: the mean of e_f e_fᵀ.
        U_DR: an orthonormal basis of what is retained.
        C_DP: what is preserved exactly.
    """
    FN = F_DD - (F_DD @ U_DR) @ U_DR.T
    factor = torch.linalg.cholesky(FN - U_DR @ (U_DR.T @ FN) + torch.eye(len(F_DD), dtype=torch.float64))
    free = torch.cat([rows_KD.T, C_DP], dim=1)
    solved, KC = torch.cholesky_solve(free - U_DR @ (U_DR.T @ free), factor).split([len(rows_KD), C_DP.shape[1]], dim=1)
    # C may lie in what is retained, in part or as a whole: then there is no inverse
    inverse = torch.linalg.pinv(C_DP.T @ KC, rtol=1e-10, hermitian=True)
    found: Tensor = solved.T - rows_KD @ KC @ inverse @ KC.T
    return found


def centres(tokens_ND: Tensor, k: int, rounds: int = 100) -> Tensor:
    """K centres [min(k, N), D] by Lloyd's algorithm, the same in every run.

    It starts at the first token, then at the one that is farthest from those before.

    Args:
        tokens_ND: the points.
        k: how many.
        rounds: at most.
    """
    tokens = tokens_ND.double()
    found = tokens[: min(k, 1)]
    while len(found) < min(k, len(tokens)):
        found = torch.cat([found, tokens[torch.cdist(tokens, found).min(1).values.argmax()][None]])
    for _ in range(rounds if len(found) else 0):
        nearest = torch.cdist(tokens, found).argmin(1)
        moved = [tokens[nearest == i].mean(0) if (nearest == i).any() else found[i] for i in range(len(found))]
        if torch.equal(torch.stack(moved), found):
            break
        found = torch.stack(moved)
    return found
