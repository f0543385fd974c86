"""Whole pipelines on a device, for as long as something generates with them."""

from __future__ import annotations

from typing import Any

import torch

from mace_pl.models.protocols import Pipeline


class OnDevice:
    """Pipelines that go to a device and leave it; Lightning moves what a module registers of them, no more.

    They move outside of inference mode, in which Lightning tests: gradients may be taken through the tensors later.

    Args:
        pipelines: all of them.
    """

    def __init__(self, *pipelines: Pipeline) -> None:
        self.pipelines, self.entered = pipelines, False

    def enter(self, device: torch.device) -> None:
        """Move the pipelines; what is there stays.

        Lightning's Trainer takes what a module registers off a GPU before ``on_fit_end``: hooks from there on that
        need a whole pipeline enter again.
        """
        if not self.entered or any(network.device != device for network in self.networks()):
            self.entered = True
            self._move(device)

    def leave(self) -> None:
        """Move them back to the CPU, if they are not there."""
        if self.entered:
            self.entered = False
            self._move(torch.device("cpu"))

    def networks(self) -> list[Any]:
        """Of all pipelines."""
        parts = [part for pipeline in self.pipelines for part in pipeline.components.values()]
        return [part for part in parts if isinstance(part, torch.nn.Module)]

    @torch.inference_mode(False)
    def _move(self, device: torch.device) -> None:
        for pipeline in self.pipelines:
            pipeline.to(device)
