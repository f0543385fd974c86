"""Whole pipelines on a device, for as long as something generates with them."""

from __future__ import annotations

import torch

from mace_pl.models.protocols import Pipeline


class OnDevice:
    """Pipelines that go to a device once and leave it once; Lightning moves what a module registers of them, no more.

    Args:
        pipelines: all of them.
    """

    def __init__(self, *pipelines: Pipeline) -> None:
        self.pipelines, self.entered = pipelines, False

    def enter(self, device: torch.device) -> None:
        """Move the pipelines, unless they are there."""
        if not self.entered:
            self.entered = True
            for pipeline in self.pipelines:
                pipeline.to(device)

    def leave(self) -> None:
        """Move them back to the CPU, if they are not there."""
        if self.entered:
            self.entered = False
            for pipeline in self.pipelines:
                pipeline.to("cpu")
