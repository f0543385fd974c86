"""Erasing concepts as a LightningModule: prepare, refine, train a LoRA per concept, fuse; each stage is one call."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from mace_pl.concepts.concept import AUTO
from mace_pl.concepts.preservation import GivenWeights, prior_of, weights_of
from mace_pl.concepts.vocabulary import STYLES_FILE, own_names
from mace_pl.data.batches import Batches
from mace_pl.errors import UserError
from mace_pl.hardening.settings import Hardening
from mace_pl.images.prepare import prepare_images
from mace_pl.images.protocols import RunData
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.edit import Edit
from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.methods.mace import Mace
from mace_pl.models.backbone import backbone_of
from mace_pl.models.on_device import OnDevice
from mace_pl.models.pipeline import load_with_source, unet_fingerprint
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.stages.down import check_down, new_loras
from mace_pl.stages.fuse import Trained, check_fusion, fuse_concepts, gather_trained
from mace_pl.stages.preflight import megabytes
from mace_pl.stages.preserve import inputs_of, preserving
from mace_pl.stages.refine import Refined, check_concepts, refine_concepts
from mace_pl.stages.train import (
    IDLE,
    ConceptState,
    Examples,
    Objective,
    attention_loss,
    encode_examples,
    rank_schedule,
    restore_state,
    state_of,
    training_inputs,
)
from mace_pl.training.frozen_layers import frozen_layers
from mace_pl.training.memory import LARGEST, LiveBytes, concepts_at_once, free_bytes
from mace_pl.training.options import check_trainer, check_whole
from mace_pl.training.sharding import Share, add_up, group_of, share_of, unsynchronised
from mace_pl.training.trainer import gathered, ranks_of

log = logging.getLogger(__name__)


class ConceptErasure(LightningModule):
    """Erase concepts from a Stable Diffusion type pipeline, by MACE (CVPR 2024) or a closed form alone.

    Args:
        pretrained: the original model, never changed: folder, hub id, or one ``.safetensors`` file (original layout).
        revision: branch, tag or commit of a hub id.
        variant: which files of a folder or hub id are read, as in ``fp16``.
        layout: diffusers folder or hub id with a single checkpoint's configurations; diffusers' own choice when None.
        method: the closed form: ``Mace`` (all three stages, when None), or one of those that train nothing and need no
            images: ``MaceRefinement``, ``UCE``, ``RECE``, ``SPEED``, ``NullSpace``, ``CURE``, ``OCE``.
        prior: file of prior statistics (``erase.py cache``), or files with their weights; ``auto``: the model's own,
            ``statistics/prior.safetensors`` in its folder, where no weight is given or one is for the prior.
        domain: file of domain statistics, or files with their weights, or none.
        domain_names: names to preserve, a list or a file with one on each line; ``auto``: those that the edit would
            move most, of ``domain_vocabulary``, or without that and ``domain`` of the model's own or common words.
        domain_vocabulary: more names, likewise; those of them are preserved that the edit would move most.
        domain_affected: how many of a vocabulary; when None 20 of ``domain_vocabulary``, else 100.
        domain_styles: those names that are styles, a list or a file; ``auto``: of the model's and the project's own.
        pooled: edit the layer that reads SDXL's pooled text too, by the closed form on pooled embeddings.
        rank: rank of each concept's LoRA (paper: 1).
        refine: λ_I, λ_p, λ_d of stage 1.
        fuse: λ_I, μ_p, μ_d of stage 3.
        lr: learning rate of stage 2 (published: 1e-5 for objects, 1e-4 otherwise, on SD 1.4).
        weight_decay: AdamW's.
        gradient_clip: largest gradient norm, per concept.
        importance_sampling: draw timesteps from the concept-focal density; off means uniform.
        squared_loss: square the attention norm (the paper's equation) or not (the published experiments).
        attend_padding: the loss looks at the end token and the padding too.
        gradient_checkpointing: run each block of the UNet again in the backward pass; less memory, more time.
        compile: compile the UNet's blocks with ``torch.compile`` (wants a C++ compiler on CPU, Triton on GPU).
        harden: stage 4, off when None: harden the edit; ``{}`` for its defaults, or settings of the command harden.
        beside: a run or library whose concepts stage 1 erases too, at full strength; stages 2 and 3 leave them alone.
        seed: seeds images, LoRAs, noise and timesteps; the command links it to ``seed_everything``.
    """

    def __init__(
        self,
        pretrained: str,
        method: ClosedForm | None = None,
        prior: str | dict[str, float] | None = AUTO,
        domain: str | dict[str, float] | None = None,
        rank: int = 1,
        refine: GivenWeights = GivenWeights(),  # noqa: B008 - read only; jsonargparse shows its fields
        fuse: GivenWeights = GivenWeights(),  # noqa: B008
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        gradient_clip: float = 1.0,
        importance_sampling: bool = True,
        squared_loss: bool = False,
        attend_padding: bool = True,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 2024,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
        domain_names: list[str] | str | None = AUTO,
        domain_vocabulary: list[str] | str | None = None,
        domain_affected: int | None = None,
        domain_styles: list[str] | str | None = AUTO,
        pooled: bool = True,
        beside: str | None = None,
        harden: Hardening | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"model.rank={rank} must be at least 1 (the paper uses 1).")
        self.automatic_optimization, self.pretrained, self.rank, self.method = False, pretrained, rank, method or Mace()
        self.seed, self.lr, self.weight_decay, self.gradient_clip = seed, lr, weight_decay, gradient_clip
        self.attend_padding, self.compile_blocks, self.hardening = attend_padding, compile, harden
        self.objective = Objective(seed, importance_sampling, squared_loss, checkpointing=gradient_checkpointing)
        self.pipeline, self.source = load_with_source(pretrained, revision, variant, layout)
        self.backbone = backbone_of(self.pipeline)
        self.unet = self.backbone.network  # registered, so that the Trainer sees it
        self.placed, self.begun, self.stage = OnDevice(self.pipeline), False, ExitStack()  # last: stage 2's switches
        self.fingerprint, self.unet_hash = encoder_fingerprint(self.pipeline), unet_fingerprint(self.unet)
        self.made = {"unet": self.unet_hash, "text_encoder": self.fingerprint}
        self.prior = prior_of(prior, pretrained, self.source, (refine, fuse), self.method.by_number, self.fingerprint)
        given: dict[str, Any] = {"prior": self.prior, "domain": domain, "domain_names": domain_names, "pooled": pooled}
        given |= {"domain_vocabulary": domain_vocabulary, "domain_affected": domain_affected}
        given |= {"domain_styles": domain_styles, "beside": beside}
        known, styles = own_names(self.source), own_names(self.source, STYLES_FILE)
        self.weights = weights_of((refine, fuse), given, self.method.by_number)
        self.wanted = preserving(given, self.weights, self.method, self.backbone, self.fingerprint, known, styles)
        self.told = inputs_of(given, self.weights, self.wanted, self.method)
        self.refined: Refined | None = None  # this and the next: what the stages make, each set by its hook
        self.loras: ConceptLoRAs | None = None
        self.examples: Examples | None = None
        self.trained: Trained | None = None
        self.edit: Edit | None = None
        self.original: dict[str, Tensor] = {}
        self.group: torch.distributed.ProcessGroup | None = None  # of the ranks that share a concept's images
        self.share, self.concepts_at_once, self.losses = Share((), (), ()), 1, dict[str, list[float]]()
        self.done, self.stepped = dict[int, int](), list[int]()  # steps of an interrupted run; concepts of this step

    @property
    def data(self) -> RunData:
        """The concepts, their prompts and images."""
        return self.trainer.datamodule  # type: ignore[attr-defined,no-any-return]

    def take_names(self, chosen: Mapping[str, tuple[float, float]]) -> None:
        """Preserve these names, which were chosen for the run; by name its size and how far it would move."""
        self.wanted = self.wanted.for_targets(self.data.concepts).with_names(chosen)
        self.told |= {"names": self.wanted.names, "vocabulary": None}

    def begin(self) -> None:
        """Check the concepts and move the pipeline, on every rank alike; a callback begins where it generates first."""
        if not self.begun:
            self.begun = True
            check_concepts(self.pipeline, self.data.concepts, self.data.templates, self.method)
            self.placed.enter(self.trainer.strategy.root_device)

    def setup(self, stage: str) -> None:
        """Stage 1 for all targets in one solve, then their images and masks."""
        check_trainer(self.trainer, "fit")
        data, concepts, prompts = self.data, self.data.concepts, self.data.templates
        self.objective = replace(self.objective, guidance=data.image_guidance, images_per_step=data.images_per_step)
        self.begin()
        check_down(self.method, concepts, self.rank, self.backbone)
        self.refined = refine_concepts(self.pipeline, concepts, prompts, self.method, self.wanted, self.attend_padding)
        check_fusion(self.refined, self.method)  # this and what is above before anything is generated
        if self.method.trains:
            prepare_images(self.pipeline, data, ranks_of(self.trainer), self.seed, self.made)
        self.backbone.set_key_values(self.refined.weights())
        if self.method.trains:
            self.loras = new_loras(self.backbone, concepts, self.refined, self.method, self.rank, self.seed)
            self.share = share_of(self.global_rank, self.trainer.world_size, len(concepts), data.images_per_step)

    def on_fit_start(self) -> None:
        """Encode this rank's images once, and choose how many concepts are trained at once."""
        data, wanted = self.data, self.data.concepts_per_batch
        if self.loras is None or self.refined is None:
            return
        self.group = group_of(self.global_rank, self.trainer.world_size, len(data.concepts), data.images_per_step)
        own, texts = self.share.concepts, self.refined.texts
        self.examples = encode_examples(self.backbone, data, data.concepts, own, texts, self.objective)
        if not self.compile_blocks:  # a compiler decides on its own what it saves for the backward pass
            self.stage.enter_context(frozen_layers(self.unet))
        self.concepts_at_once = self.fitting_concepts() if wanted == "auto" else wanted
        if self.compile_blocks:
            self.stage.enter_context(self.backbone.compiled())

    def fitting_concepts(self) -> int:
        """How many concepts are trained at once: a step of one is run and measured, its gradient is dropped."""
        left = [c for c in self.share.concepts if self.done.get(c, 0) < self.data.steps_per_concept]
        chosen = LARGEST  # of a rank that has nothing left to train
        if left:
            with LiveBytes() as live, self.trainer.precision_plugin.train_step_context():
                self.loss(left[:1], 0).sum().backward()
            self.zero_grad(set_to_none=True)
            ranks = self.trainer.num_devices if self.device.type == "cpu" else 1  # those of a node share its memory
            free = free_bytes(self.device) // ranks
            chosen = concepts_at_once(free, live.peak, len(left))
            log.info(f"Concepts at once: {chosen} (one takes {megabytes(live.peak)}, free: {megabytes(free)})")
        return int(min(gathered(self.trainer, chosen)))  # the schedules of all ranks have one length

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """This rank's schedule."""
        given = self.global_rank, self.trainer.world_size, self.concepts_at_once, self.done
        return DataLoader(Batches(rank_schedule(self.data, *given) if self.method.trains else [IDLE]), batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """AdamW over all LoRAs; those without a gradient in a step stay as they are."""
        parameters = [] if self.loras is None else self.loras.parameters_list()
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay) if parameters else None

    def loss(self, concepts: Sequence[int], step: int) -> Tensor:
        """[C]: see :func:`mace_pl.stages.train.attention_loss`."""
        assert self.loras is not None and self.examples is not None
        numbers = self.share.images
        return attention_loss(self.backbone, self.loras, self.examples, self.objective, concepts, step, numbers)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """One step of each concept in the batch, with losses, clipping and optimizer state of its own."""
        self.stepped = concepts = list(batch["concepts"])
        if not concepts or self.loras is None:
            return
        losses = self.loss(concepts, batch["step"])
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        with unsynchronised(self.trainer.strategy):  # gradients cross ranks only where these share a concept's images
            self.manual_backward(losses.sum())
        self.loras.activate(None)
        if self.group is not None:
            losses = add_up([p for c in concepts for p in self.loras.parameters_of(c)], losses, self.group)
        optimizer.step()
        for concept, loss in zip(concepts, losses.tolist(), strict=True):
            self.losses.setdefault(self.data.concepts[concept].target, []).append(loss)
        self.log("loss", losses.detach().mean(), prog_bar=True, rank_zero_only=True, batch_size=len(concepts))
        self.log("step", float(batch["step"] + 1), prog_bar=True, rank_zero_only=True, batch_size=1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip each concept's gradient on its own, once a loss scale has been taken out of it."""
        assert self.loras is not None
        for c in self.stepped:
            torch.nn.utils.clip_grad_norm_(self.loras.parameters_of(c), self.gradient_clip)

    def current(self) -> list[str]:
        """The targets of this step, for the progress bar."""
        return [self.data.concepts[c].target for c in self.stepped]

    def identity_of(self, concept: int) -> dict[str, str]:
        """See :func:`mace_pl.stages.train.training_inputs`."""
        objective = {k: v for k, v in vars(self.objective).items() if k != "checkpointing"}
        optimizer = {"lr": self.lr, "weight_decay": self.weight_decay, "clip": self.gradient_clip, "rank": self.rank}
        settings = {**objective, **optimizer, "precision": str(self.trainer.precision)}
        method = {"method": repr(self.method), **self.told, "attend_padding": self.attend_padding}
        return training_inputs(self.data, concept, settings, self.made, {**method, "trains": self.method.trains})

    def state_of(self, concept: int) -> ConceptState:
        """A concept in training, to be saved."""
        assert self.loras is not None
        losses = self.losses[self.data.concepts[concept].target]
        return state_of(self.loras, self.trainer.optimizers[0], concept, losses)

    def resume(self, concept: int, state: ConceptState) -> None:
        """Resume a concept from what was saved; another rank's is only left out of the schedules."""
        self.done[concept] = state.steps
        if self.loras is not None and concept in self.share.concepts:
            restore_state(self.loras, self.trainer.optimizers[0], concept, state)
            self.losses[self.data.concepts[concept].target] = list(state.losses)

    def on_train_end(self) -> None:
        """Gather the LoRAs of all ranks and solve stage 3; the network then holds the edited weights."""
        assert self.refined is not None
        self.stage.close()
        if self.loras is not None:
            targets = [self.data.concepts[c].target for c in self.share.concepts]
            check_whole(self.trainer, self.data.steps_per_concept, targets, self.losses)
            self.loras.remove(self.unet)
        self.trained = gather_trained(self.trainer, self.loras, self.share, self.losses)
        original = {name: W.cpu() for name, W in self.refined.original.items()}
        self.take_edit(fuse_concepts(self.refined, self.trained), original)

    def take_edit(self, edit: Edit, original: dict[str, Tensor]) -> None:
        """The edit, and the weights that it changes as they were; the network, of which it is, then holds it."""
        self.edit, self.original = edit, original
        self.backbone.set_key_values(edit.weights(original))

    def teardown(self, stage: str) -> None:
        """All is written: the whole pipeline leaves the device."""
        self.placed.leave()
        self.begun = False
