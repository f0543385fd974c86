"""What a closed form is: which tokens it sums, and what it solves for from these sums.

With W' = W T for every key and value (identity 1 of the method), a method differs from another only in these two. To
add one, write one file with a subclass of :class:`ClosedForm`, and import it in ``mace_pl/methods/__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.closed_form import Preservation, metric
from mace_pl.methods.edit import Edit

#: which tokens of target and anchor enter F and G, and of the names that are preserved D: those beside the target in
#: every prompt; all tokens of every prompt, position by position; all tokens of the bare name; or its last token
Tokens = Literal["coexisting", "all", "bare", "last"]
#: A of a LoRA B A is trained with B, or fixed to where the target's prompts have most for what is preserved
Down = Literal["trained", "gram"]


@dataclass(frozen=True)
class Sums:
    """What a closed form is solved from. K tokens of targets, N names, T tokens of a prompt, D text width.

    Attributes:
        F: Σ e_f e_fᵀ [D, D] over the tokens of the targets.
        G: Σ e_g e_fᵀ [D, D], the anchors' tokens against the targets'; zero where there is no anchor.
        preservation: what is preserved, with its weights.
        layers: the original keys and values W [O, D] by layer name.
        pairs: K, the number of tokens in F and G.
        names: the last token of every name that stays, [N, D]; None without names.
        blank: the tokens of the empty prompt, [T, D]; None where a method does not ask for it.
    """

    F: Tensor
    G: Tensor
    preservation: Preservation
    layers: Mapping[str, Tensor]
    pairs: float = 1.0
    names: Tensor | None = None
    blank: Tensor | None = None

    @cached_property
    def metric(self) -> Tensor:
        """A = Σ_l W_lᵀ W_l [D, D] over all keys and values."""
        return metric(self.layers.values())


def above_zero(name: str, value: float, published: str) -> float:
    """A setting of a method that must be above 0.

    Raises:
        UserError: it is not.
    """
    if not 0 < value < float("inf"):
        raise UserError(f"model.method.{name}={value} must be above 0 (published: {published}), and finite.")
    return value


class ClosedForm(ABC):
    """A method whose edit of the keys and values is solved from sums.

    Attributes:
        source: name and paper, for the cards of what is exported.
        tokens: which tokens enter the sums.
        trains: whether LoRAs and their fusion (stages 2 and 3 of MACE) follow; a method that trains nothing needs no
            images.
        anchored: whether targets need an anchor; else they must have none.
        takes_strength: whether a target can be erased in part by G → wG + (1 − w)F.
        weighs: whether the weights of ``model.refine`` are used.
        reads_names: whether ``Sums.names`` and ``Sums.blank`` are used, whatever the weight of the domain.
        by_number: whether weights that are not given follow the number of targets: ``BY_NUMBER`` of
            :mod:`mace_pl.concepts.preservation`, which was measured for MACE alone.
        down: how the down-projections A of the LoRAs come about, where there are LoRAs.
        groups: targets that share an A, by a name of their own.
    """

    source: str
    tokens: Tokens = "coexisting"
    trains: bool = False
    anchored: bool = True
    takes_strength: bool = True
    weighs: bool = True
    reads_names: bool = False
    by_number: bool = False
    down: Down = "trained"
    groups: Mapping[str, Sequence[str]] = MappingProxyType({})

    @property
    def one_matrix(self) -> bool:
        """Whether the edit is one T for all layers.

        Then the pooled text of SDXL is edited too: :meth:`solve` is called once more, with sums of pooled embeddings.
        """
        return True

    @abstractmethod
    def solve(self, sums: Sums) -> Edit:
        """The edit in float64: for most methods one T [D, D] for all layers.

        Raises:
            UserError: the system is singular; the message says what to change.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"
