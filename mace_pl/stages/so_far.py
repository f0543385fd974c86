"""The edit of what stage 2 has trained so far, fused as it would be at the end; training goes on as if nothing was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.models.backbone import Backbone
from mace_pl.stages.fuse import Trained, fuse_concepts
from mace_pl.stages.refine import Refined


@contextmanager
def edited_so_far(backbone: Backbone, refined: Refined, loras: ConceptLoRAs, trained: Trained) -> Iterator[None]:
    """Within the context the network is the edited one; then it is the refined one with its LoRAs again, bit for bit.

    Args:
        backbone: the refined model with the LoRAs in place.
        refined: what stage 1 has left.
        loras: of stage 2.
        trained: what they are now, of all ranks; an untrained LoRA changes nothing.

    Raises:
        UserError: stage 3 cannot be solved.
    """
    edit = fuse_concepts(refined, trained)
    loras.remove(backbone.network)
    before = backbone.text_layers()
    try:
        backbone.set_key_values(edit.weights({name: W.cpu() for name, W in refined.original.items()}))
        yield
    finally:
        backbone.set_key_values(before)
        loras.put(backbone.network)
