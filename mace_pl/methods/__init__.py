"""The maths of erasing: Gram sums, closed forms, LoRAs side by side, losses, the edit.

A closed form is found by its name (``--model.method UCE``) where it is imported here.
"""

from mace_pl.methods.mace import Mace, MaceRefinement
from mace_pl.methods.uce import UCE

__all__ = ["UCE", "Mace", "MaceRefinement"]
