"""How long the stages of a run take on this machine, and how much memory and disk: from shapes and a few timed calls.

Legend: N samples, T tokens, D text width, [C, h, w] latents.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.concepts.named import TEMPLATES
from mace_pl.files.artifacts import slug
from mace_pl.files.identity import made_from
from mace_pl.images.prepare import wanted
from mace_pl.images.protocols import RunData
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import Preservation, factored, gram, solve_right
from mace_pl.models.backbone import Backbone, backbone_of
from mace_pl.models.pipeline import scheduled, unet_fingerprint
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.training.calls import Call, Machine, Passes, Taken
from mace_pl.training.frozen_layers import frozen_layers
from mace_pl.training.memory import concepts_at_once, free_bytes

ENCODED = 64  # prompts that are encoded at once
SEARCH_STEPS, SEARCH_BATCH = 20, 20  # of a search: denoising steps at most, and images at once
OF_A_NAME = len(TEMPLATES)  # prompts of a name that is preserved


@dataclass(frozen=True)
class Planned:
    """What a run is going to do.

    Attributes:
        data: concepts, prompts and images.
        method: the closed form.
        rank: of each LoRA.
        seed: of the run.
        names: how many names are preserved.
        shown: images of the report, before and again after.
        checkpointing: whether blocks are run again in the backward pass.
        whole: whether the whole pipeline is written.
        ready: images of the report, before, that earlier runs have left.
        hardening: what stage 4 asks of the network; None without it.
        searched: images of a search behind the run, at most; they have at most :data:`SEARCH_STEPS` denoising steps.
    """

    data: RunData
    method: ClosedForm
    rank: int
    seed: int
    names: int
    shown: int
    checkpointing: bool = False
    whole: bool = True
    ready: int = 0
    hardening: Passes | None = None
    searched: int = 0


@dataclass(frozen=True)
class Estimate:
    """A stage.

    Attributes:
        stage: its name.
        work: what is done in it.
        taken: how long, and how much memory beside the model's own.
    """

    stage: str
    work: str
    taken: Taken


class Estimator:
    """What a run takes. Calls are timed on the model as it is, which stays so.

    Args:
        pipeline: the original model, on its device.
        planned: what the run is going to do.
        clock: that times.
    """

    def __init__(self, pipeline: Pipeline, planned: Planned, clock: Callable[[], float] = time.perf_counter) -> None:
        self.pipeline, self.planned, self.data = pipeline, planned, planned.data
        self.backbone: Backbone = backbone_of(pipeline)
        self.network = self.backbone.network
        self.machine, self.host = Machine(self.network.device, clock), Machine(torch.device("cpu"), clock)
        self.layers = {name: W.cpu() for name, W in self.backbone.key_values().items()}
        self.width = int(next(iter(self.layers.values())).shape[1])
        self.text, self.pooled = self.backbone.encode([""])

    def stages(self) -> list[Estimate]:
        """All stages of a run, in order."""
        planned, data = self.planned, self.data
        count, prompts = len(data.concepts), sum(len(own) for own in data.templates)
        found = []
        if planned.shown:
            before, shown = planned.shown - planned.ready, self.images(planned.shown, data.images_per_batch)
            what = f"{counted(planned.shown, 'image')}, before and after"
            if planned.ready:
                what = f"{counted(before, 'image')} before, {planned.shown} after"
            found.append(Estimate("report", what, self.images(before, data.images_per_batch).then(shown)))
        statistics = self.statistics(2 * prompts, OF_A_NAME * planned.names)
        found.append(Estimate("refine", f"{2 * prompts + OF_A_NAME * planned.names} prompts, one solve", statistics))
        if self.missing:
            images = self.images(self.missing, data.images_per_batch)
            found.append(Estimate("prepare", f"{counted(self.missing, 'image')} of the targets", images))
        if planned.method.trains:
            steps = count * data.steps_per_concept
            found.append(Estimate("train", counted(steps, "step"), self.training()))
            found.append(Estimate("fuse", f"{counted(count, 'LoRA')}, one solve", self.fusion()))
        if planned.hardening is not None:
            calls = sum(calls for calls, _ in planned.hardening.back)
            what = f"{counted(planned.hardening.images, 'image')}, {counted(calls, 'pass')} and back"
            found.append(Estimate("harden", what, self.hardened(planned.hardening)))
        if planned.searched:
            taken, part = self.images(planned.searched, SEARCH_BATCH), min(1.0, SEARCH_STEPS / data.image_steps)
            taken = replace(taken, seconds=part * taken.seconds)
            found.append(Estimate("search", f"{planned.searched} images at most", taken))
        return found

    # --- images --------------------------------------------------------------------------------------------------

    @cached_property
    def missing(self) -> int:
        """How many images of the targets are not there yet."""
        data = self.data
        if not self.planned.method.trains:
            return 0
        model = {"unet": unet_fingerprint(self.network), "text_encoder": encoder_fingerprint(self.pipeline)}
        with scheduled(self.pipeline, data.image_scheduler, "data.image_scheduler"):
            model["scheduler"] = type(self.pipeline.scheduler).__name__
        requests = wanted(data, self.planned.seed, model)
        return sum(r.count for r in requests if not made_from(data.pictures / slug(r.target), asdict(r)))

    def latents(self, samples: int) -> Tensor:
        """Zeros [N, C, h, w]."""
        side = self.network.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        shape = (samples, self.network.config.in_channels, height, width)
        return torch.zeros(shape, device=self.network.device, dtype=self.network.dtype)

    def conditions(self, samples: int) -> tuple[Tensor, dict[str, Any]]:
        """The empty prompt's text [N, T, D], and what else the network wants."""
        text = self.text.to(self.network.device, self.network.dtype).expand(samples, -1, -1)
        pooled = None if self.pooled is None else self.pooled.expand(samples, -1)
        return text, self.backbone.inputs(pooled, samples, self.data.image_guidance)

    @cached_property
    def step(self) -> Call:
        """A pass of the network; ``forward``, so that what a user has hooked to it counts the run's passes alone."""
        t = torch.tensor(1, device=self.network.device)

        @torch.no_grad()
        def step(samples: int) -> None:
            text, extra = self.conditions(samples)
            self.network.forward(self.latents(samples), t, encoder_hidden_states=text, **extra)

        with frozen_layers(self.network):
            return self.machine.timed(step)

    @cached_property
    def decoding(self) -> Call:
        """Latents to images."""
        autoencoder = self.backbone.autoencoder

        @torch.no_grad()
        def decode(samples: int) -> None:
            latents = self.latents(samples)[:, : autoencoder.config.latent_channels]
            autoencoder.decode(latents.to(autoencoder.dtype))

        return self.machine.timed(decode)

    def images(self, count: int, batch: int) -> Taken:
        """Images: each denoising step is a pass of two samples for each image of a batch (classifier-free guidance)."""
        sides, taken = 2 if self.data.image_guidance > 1 else 1, Taken()
        for calls, size in ((count // batch, batch), (1, count % batch)):
            if calls and size:
                steps = self.step.of(sides * size).times(calls * self.data.image_steps)
                taken = taken.then(steps).then(self.decoding.of(size).times(calls))
        return taken

    # --- sums and solves -----------------------------------------------------------------------------------------

    def statistics(self, prompts: int, of_names: int) -> Taken:
        """Encode prompts, sum their tokens (three sums of a target's and its anchor's), solve, edit the weights."""
        text = torch.zeros(1, self.text.shape[1], self.width)
        encoded = self.machine.timed(lambda n: self.backbone.encode(["a photo"] * n))
        summed = self.host.timed(lambda n: gram(text.expand(n, -1, -1), text.expand(n, -1, -1)))
        taken = encoded.of(prompts + of_names).seconds + summed.of(1.5 * prompts + of_names).seconds
        size = max(call.of(min(prompts + of_names, ENCODED)).bytes for call in (encoded, summed))
        return Taken(taken, size).then(self.solved).then(self.applied)

    @cached_property
    def solved(self) -> Taken:
        """One factor and one solve of [D, D] in float64."""
        one, kept = torch.eye(self.width, dtype=torch.float64), Preservation(1.0)
        return self.host.timed(lambda _: solve_right(one, factored(one, kept, "refine"))).of(1)

    @cached_property
    def applied(self) -> Taken:
        """W T of every key and value in float64."""
        T = torch.eye(self.width, dtype=torch.float64)
        return self.host.timed(lambda _: [W.double() @ T for W in self.layers.values()]).of(1)

    def fusion(self) -> Taken:
        """A solve, each LoRA's rows of all layers through F_i and M⁻¹, and the edited weights."""
        rows = torch.zeros(len(self.layers) * self.planned.rank, self.width, dtype=torch.float64)
        one = torch.eye(self.width, dtype=torch.float64)
        lora = self.host.timed(lambda _: solve_right(rows @ one, one)).of(1)
        return lora.times(len(self.data.concepts)).then(self.solved).then(self.applied)

    # --- training ------------------------------------------------------------------------------------------------

    def training(self) -> Taken:
        """A step is a pass to the last cross-attention and back, of as many concepts as the free memory holds."""
        data, count = self.data, len(self.data.concepts)

        def step(samples: int) -> None:
            latents, t = self.latents(samples).requires_grad_(), torch.ones(samples, device=self.network.device)
            text, extra = self.conditions(samples)
            with torch.enable_grad():
                losses = self.backbone.attention_losses(
                    latents, t.long(), text, _norms, extra, checkpointing=self.planned.checkpointing
                )
                losses.sum().backward()

        with frozen_layers(self.network):
            call = self.machine.timed(step)
        fitting = concepts_at_once(free_bytes(self.network.device), int(call.of(data.images_per_step).bytes), count)
        group = fitting if data.concepts_per_batch == "auto" else min(data.concepts_per_batch, count)
        return call.of(group * data.images_per_step).times(-(-count // group) * data.steps_per_concept)

    def hardened(self, passes: Passes) -> Taken:
        """Images, then passes of the whole network, with a gradient of the text and without."""
        t = torch.tensor(1, device=self.network.device)

        def back(samples: int) -> None:
            text, extra = self.conditions(samples)
            text = text.clone().requires_grad_()
            with torch.enable_grad():
                found = self.network.forward(self.latents(samples), t, encoder_hidden_states=text, **extra)
                found.sample.square().sum().backward()

        with frozen_layers(self.network):
            call = self.machine.timed(back)
        taken = self.images(passes.images, self.data.images_per_batch)
        for kind, calls in ((self.step, passes.ahead), (call, passes.back)):
            for count, samples in calls:
                taken = taken.then(kind.of(samples).times(count))
        return taken

    # --- disk ----------------------------------------------------------------------------------------------------

    def disk(self) -> int:
        """Bytes that the run writes at most: images as if not compressed, sums, LoRAs, the edit, and the pipeline."""
        width, count = self.width, len(self.data.concepts)
        outs = sum(len(W) for W in self.layers.values())
        lora = self.planned.rank * (outs + width * len(self.layers)) * 4 if self.planned.method.trains else 0
        height, breadth = self.backbone.image_size
        images = self.missing * height * breadth * 4  # three colours and a mask
        sums = count * 3 * width**2 * 8
        edit = width**2 * 4 + count * lora + outs * width * 4
        parts = self.pipeline.components.values() if self.planned.whole else ()
        weights = [p for part in parts if isinstance(part, torch.nn.Module) for p in part.parameters()]
        return images + sums + count * lora + edit + sum(p.numel() * p.element_size() for p in weights)


def _norms(probabilities: Tensor) -> Tensor:
    """[N] from probabilities [N, H, Q, T]."""
    norms: Tensor = torch.linalg.vector_norm(probabilities.flatten(1), dim=1)
    return norms


def counted(number: int, thing: str) -> str:
    """``1 image`` or ``2 images``, ``2 passes``."""
    return f"{number} {thing}{'' if number == 1 else 'es' if thing.endswith('s') else 's'}"


def disk_free(folder: Path) -> int:
    """Bytes that are free where a folder lies or will lie."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
