"""The maths of erasing: Gram sums, closed forms, batched LoRAs, losses, the edit.

A closed form is found by its name (``--model.method UCE``) where it is imported here.
"""

from mace_pl.methods.base import ClosedForm
from mace_pl.methods.cure import CURE
from mace_pl.methods.mace import Mace, MaceRefinement
from mace_pl.methods.null_space import NullSpace
from mace_pl.methods.oce import OCE
from mace_pl.methods.rece import RECE
from mace_pl.methods.speed import SPEED
from mace_pl.methods.uce import UCE

__all__ = ["CURE", "ClosedForm", "OCE", "RECE", "SPEED", "UCE", "Mace", "MaceRefinement", "NullSpace"]
