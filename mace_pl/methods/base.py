"""What a closed form is: which tokens it sums, and the one d × d matrix that it solves for.

With W' = W T for every key and value (identity 1 of the method), a method differs from another only in these two. To
add one, write one file with a subclass of :class:`ClosedForm`, and import it in ``mace_pl/methods/__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from mace_pl.methods.closed_form import Preservation

#: which tokens of target and anchor enter F and G: those beside the target in every prompt; all tokens of every prompt,
#: position by position; or the last token of the bare name
Tokens = Literal["coexisting", "all", "last"]


class ClosedForm(ABC):
    """A method whose edit of every key and value projection is W' = W T.

    Attributes:
        tokens: which tokens of target and anchor enter the sums.
        trains: whether LoRAs and their fusion (stages 2 and 3 of MACE) follow; a method that trains nothing needs no
            images.
    """

    tokens: Tokens = "coexisting"
    trains: bool = False

    @abstractmethod
    def solve(self, F: Tensor, G: Tensor, keep: Preservation, layers: Mapping[str, Tensor]) -> Tensor:
        """T [D, D] in float64.

        Args:
            F: Σ e_f e_fᵀ [D, D] over the tokens of the targets.
            G: Σ e_g e_fᵀ [D, D], the anchors' tokens against the targets'.
            keep: what is preserved, with its weights.
            layers: the original keys and values W [O, D] by layer name, for methods that look at them.

        Raises:
            UserError: the system is singular; the message says which weights to raise.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"
