"""Whole pipelines on a device, for as long as something generates with them."""

from __future__ import annotations

import torch

from mace_pl.models.protocols import Pipeline


class OnDevice:
    """Pipelines that go to a device once and leave it once; Lightning moves what a module registers of them, no more.

    They move outside of inference mode, in which Lightning tests: gradients may be taken through the tensors later.

    Args:
        pipelines: all of them.
    """

    def __init__(self, *pipelines: Pipeline) -> None:
        self.pipelines, self.entered = pipelines, False

    def enter(self, device: torch.device) -> None:
        """Move the pipelines, unless they are there."""
        if not self.entered:
            self.entered = True
            self._move(device)

    def leave(self) -> None:
        """Move them back to the CPU, if they are not there."""
        if self.entered:
            self.entered = False
            self._move(torch.device("cpu"))

    @torch.inference_mode(False)
    def _move(self, device: torch.device) -> None:
        for pipeline in self.pipelines:
            pipeline.to(device)
