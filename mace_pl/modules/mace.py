"""MACE as a LightningModule: prepare, refine, train a LoRA per concept, fuse."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mace_pl.attention import attention_losses, compiled
from mace_pl.closed_form import gram
from mace_pl.concepts import Concept, aligned_positions, attended_positions
from mace_pl.conditions import unet_conditions
from mace_pl.edit import ConceptSums, Edit, Factors, SumsOnDisk, fusion, original_weights, refinement, set_weights
from mace_pl.errors import UserError
from mace_pl.filed import Filed
from mace_pl.frozen import frozen_layers
from mace_pl.lora import ConceptLoRAs, stream
from mace_pl.losses import importance_density, masked_attention_norm
from mace_pl.memory import LARGEST, LiveBytes, free_bytes, side_by_side
from mace_pl.options import check_trainer, check_whole
from mace_pl.pipelines import load_pipeline, picture_size, unet_fingerprint, vae_latents
from mace_pl.preparing import check_prompts, prepare_pictures
from mace_pl.preserving import StageWeights, named_statistics, names_to_keep, preservation, with_domain
from mace_pl.sampling import noised
from mace_pl.teams import add_up, group_of
from mace_pl.text import encode_both, encode_prompts, encoder_fingerprint, text_parts
from mace_pl.trainer import gathered


class Mace(LightningModule):
    """Erase concepts from a Stable Diffusion type pipeline (MACE, CVPR 2024).

    Args:
        pretrained: the original model, never changed: folder or hub id of a Stable Diffusion pipeline, or a single
            ``.safetensors`` checkpoint in the original layout.
        revision: branch, tag or commit of a hub id.
        variant: which files of a folder or hub id are read, as in ``fp16``.
        layout: diffusers folder or hub id with the configurations, tokenizer and scheduler of a single checkpoint; what
            diffusers takes for its family when None.
        prior: file of prior statistics (``erase.py cache``), or files with their weights, or none.
        domain: file of domain statistics, or files with their weights, or none.
        domain_names: names that stay, a list or a text file with one on each line: their prompts are added to
            ``domain`` when the run starts. Targets among them are left out.
        rank: rank of each concept's LoRA (paper: 1).
        refine: λ_I, λ_p, λ_d of stage 1.
        fuse: λ_I, μ_p, μ_d of stage 3.
        lr: learning rate of stage 2 (published: 1e-5 for objects, 1e-4 otherwise, on SD 1.4).
        weight_decay: AdamW's.
        gradient_clip: largest gradient norm, per concept.
        importance_sampling: draw timesteps from the concept-focal density; off means uniform.
        squared_loss: square the attention norm (the paper's equation) or not (the published experiments).
        attend_padding: the loss looks at the end token and the padding too.
        align_all_tokens: stage 1 maps all tokens position by position, not only the co-existing ones.
        gradient_checkpointing: run each block of the UNet again in the backward pass; less memory, more time.
        compile: compile the UNet's blocks with ``torch.compile`` (wants a C++ compiler on CPU, Triton on GPU).
        seed: seeds pictures, LoRAs, noise and timesteps; the command links it to ``seed_everything``.
    """

    def __init__(
        self,
        pretrained: str,
        prior: str | dict[str, float] | None = None,
        domain: str | dict[str, float] | None = None,
        rank: int = 1,
        refine: StageWeights = StageWeights(identity=1e3),  # noqa: B008 - read only; jsonargparse shows its fields
        fuse: StageWeights = StageWeights(identity=1e3),  # noqa: B008
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        gradient_clip: float = 1.0,
        importance_sampling: bool = True,
        squared_loss: bool = False,
        attend_padding: bool = True,
        align_all_tokens: bool = False,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 2024,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
        domain_names: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if rank < 1:
            raise UserError(f"model.rank={rank} must be at least 1 (the paper uses 1).")
        self.pretrained, self.rank, self.seed = pretrained, rank, seed
        self.lr, self.weight_decay, self.gradient_clip = lr, weight_decay, gradient_clip
        self.importance_sampling, self.squared_loss = importance_sampling, squared_loss
        self.attend_padding, self.align_all_tokens = attend_padding, align_all_tokens
        self.gradient_checkpointing, self.compile_blocks = gradient_checkpointing, compile
        self.pipeline = load_pipeline(pretrained, revision, variant, layout)
        self.unet = self.pipeline.unet
        self.fingerprint = encoder_fingerprint(self.pipeline)
        self.unet_hash = unet_fingerprint(self.unet)
        self.width = int(encode_prompts(self.pipeline, [""]).shape[-1])
        self.domain_names = names_to_keep(domain_names, (refine, fuse))
        self.keep_refine, self.keep_fuse = preservation(prior, domain, (refine, fuse), self.fingerprint, self.width)
        self.edit: Edit | None = None
        self.factors: dict[str, Factors] = {}
        self.losses: dict[str, list[float]] = {}
        self.current: list[str] = []  # the concepts of this step, for the progress bar
        self.stage = ExitStack()  # what is switched on while stage 2 runs

    # --- prepare -------------------------------------------------------------------------------------------------

    def prepare(self, data: Any) -> None:
        """Check the prompts, then draw the pictures and masks of the targets that bring none, each process a share."""
        check_prompts(self.pipeline, data.concepts, data.templates)
        model = {"unet": self.unet_hash, "text_encoder": self.fingerprint}
        prepare_pictures(self.pipeline, self.trainer, self.seed, model)

    # --- refine --------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Pictures, then stage 1 for all targets in one solve and a LoRA per concept on the refined projections."""
        if stage != "fit":
            return
        check_trainer(self.trainer, "fit")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.prepare(data)
        self.concepts: list[Concept] = data.concepts
        self.guidance: float = data.image_guidance
        self.pipeline.to(self.trainer.strategy.root_device)  # on every process alike, so that their sums are equal
        self.original = original_weights(self.unet)
        self.sums = SumsOnDisk()
        self.embeddings = Filed()
        self.pooled: list[Tensor | None] = []
        self.positions: list[Tensor] = []
        for concept, templates in zip(data.concepts, data.templates, strict=True):
            self.sums.add(concept.target, self.concept_sums(concept, templates))
        names = named_statistics(self.pipeline, self.domain_names, list(self.sums))
        self.keep_refine, self.keep_fuse = with_domain(self.keep_refine, names), with_domain(self.keep_fuse, names)
        self.T = refinement(self.sums, self.keep_refine)
        set_weights(self.unet, {n: (w.double() @ self.T.to(w.device)).to(w.dtype) for n, w in self.original.items()})
        self.loras = ConceptLoRAs(self.unet, [c.target for c in data.concepts], self.rank, self.seed)
        steps = self.pipeline.scheduler.config.num_train_timesteps
        uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
        self.density = importance_density(steps) if self.importance_sampling else uniform

    def concept_sums(self, concept: Concept, templates: list[str]) -> ConceptSums:
        """F, G and F_i of one concept; its embeddings [P, T, D] and attended positions [P, T] are kept for stage 2."""
        tokenizer = text_parts(self.pipeline)[0][0]
        target_prompts = [t.replace("{}", concept.target) for t in templates]
        anchor_prompts = [t.replace("{}", concept.anchor) for t in templates]
        encoded, pooled = encode_both(self.pipeline, target_prompts)
        target, anchor = encoded.cpu(), encode_prompts(self.pipeline, anchor_prompts).cpu()
        F_tokens, G_tokens = [], []
        for i, (left, right) in enumerate(zip(target_prompts, anchor_prompts, strict=True)):
            every = list(range(target.shape[1]))
            own, other = (every, every) if self.align_all_tokens else aligned_positions(tokenizer, left, right)
            F_tokens.append(target[i, own])
            G_tokens.append(anchor[i, other])
        attended = [attended_positions(tokenizer, t, concept.target, self.attend_padding) for t in templates]
        self.embeddings.add(target)
        self.pooled.append(pooled)
        self.positions.append(torch.tensor(attended))
        F, G = torch.cat(F_tokens), torch.cat(G_tokens)
        return ConceptSums(gram(F, F), gram(G, F), gram(target, target))

    # --- train ---------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Encode this process's pictures once; latents and masks stay on the device."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.images: Sequence[int] = data.share().images
        self.images_per_step: int = data.images_per_step
        rank, world = data.place()
        self.group = group_of(rank, world, len(self.concepts), data.images_per_step)
        self.pipeline.vae.to(self.device)
        self.latents: dict[int, Tensor] = {}
        self.masks: dict[int, Tensor] = {}
        for c in data.own_concepts():
            pixels, masks = data.load(self.concepts[c], picture_size(self.pipeline))
            with torch.no_grad():  # one by one: an encoder wants gigabytes for a large picture
                parts = [vae_latents(self.pipeline.vae, p.to(self.device)) for p in pixels.split(1)]
            self.latents[c] = torch.cat(parts)
            self.masks[c] = masks.bool().to(self.device)
            self.positions[c] = self.positions[c].to(self.device)
        for part in (self.pipeline.vae, *text_parts(self.pipeline)[1]):
            part.cpu()  # not needed while LoRAs are trained
        if not self.compile_blocks:  # a compiler decides on its own what it keeps
            self.stage.enter_context(frozen_layers(self.unet))
        if data.concepts_per_batch == "auto":
            left = [c for c in data.own_concepts() if data.done.get(c, 0) < data.steps_per_concept]
            data.concepts_per_batch = self.fitting_concepts(left)
        if self.compile_blocks:
            self.stage.enter_context(compiled(self.unet))

    def fitting_concepts(self, left: Sequence[int]) -> int:
        """How many concepts are trained side by side: a step of one is run and measured, its gradient is dropped."""
        chosen = LARGEST  # of a process that has nothing left to train
        if left:
            with LiveBytes() as live, self.trainer.precision_plugin.train_step_context():
                self.losses_of(left[:1], 0).sum().backward()
            self.loras.activate(None)
            self.zero_grad(set_to_none=True)
            free = free_bytes(self.device)
            if self.device.type == "cpu":
                free //= self.trainer.num_devices  # the processes of a node share its memory
            chosen = side_by_side(free, live.peak, len(left))
            taken, left_over = (f"{size / 2**20:,.1f} MB" for size in (live.peak, free))
            rank_zero_info(f"Concepts side by side: {chosen} (one takes {taken}, free: {left_over})")
        return int(min(gathered(self.trainer, chosen)))  # the schedules of all processes have one length

    def training_key(self, concept: int) -> str:
        """SHA-256 over everything that the training of one concept depends on; equal keys give equal LoRAs."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        optimizer = (self.lr, self.weight_decay, self.gradient_clip, self.trainer.precision)
        settings = (*optimizer, self.importance_sampling, self.squared_loss, data.images_per_step)
        digest = hashlib.sha256(repr((settings, self.rank, self.seed, self.concepts[concept].target)).encode())
        digest.update(self.unet_hash.encode())
        pooled = self.pooled[concept]
        tensors = [self.T, self.embeddings[concept], self.positions[concept]]
        for tensor in tensors if pooled is None else [*tensors, pooled]:
            digest.update(tensor.cpu().numpy().tobytes())
        for file in data.files(self.concepts[concept]):
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all LoRAs; those without a gradient in a step stay as they are."""
        return torch.optim.AdamW(self.loras.parameters_list(), lr=self.lr, weight_decay=self.weight_decay)

    def sample(self, concept: int, step: int, number: int = 0) -> dict[str, Tensor]:
        """The image of this number in a concept's step, by a random stream of its own: picture, prompt, t and noise."""
        generator = stream(self.seed, self.concepts[concept].target, "step", step, *([number] if number else []))
        image = int(torch.randint(len(self.latents[concept]), (), generator=generator))
        prompt = int(torch.randint(len(self.positions[concept]), (), generator=generator))
        t = torch.multinomial(self.density, 1, generator=generator)[0].to(self.device)
        latents = self.latents[concept][image]
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        pooled = self.pooled[concept]
        return {
            "latents": noised(self.pipeline, latents, noise, t),
            "t": t,
            "text": self.embeddings.row(concept, prompt).to(self.device),
            "positions": self.positions[concept][prompt],
            "mask": self.masks[concept][image],
        } | ({} if pooled is None else {"pooled": pooled[prompt].to(self.device)})

    def losses_of(self, concepts: Sequence[int], step: int) -> Tensor:
        """The losses [N] of one step of N concepts, over this process's images; LoRAs stay active for backward."""
        samples = [self.sample(c, step, number) for c in concepts for number in self.images]
        x = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}

        def layer_loss(probabilities: Tensor) -> Tensor:
            return masked_attention_norm(probabilities, x["mask"], x["positions"], self.squared_loss)

        self.loras.activate([c for c in concepts for _ in self.images])
        extra = unet_conditions(self.pipeline, x.get("pooled"), len(samples), self.guidance)
        losses = attention_losses(
            self.unet, x["latents"], x["t"], x["text"], layer_loss, extra, checkpointing=self.gradient_checkpointing
        )
        return losses.view(len(concepts), len(self.images)).sum(1) / self.images_per_step

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """One step of each concept in the batch, with losses, clipping and optimizer state of its own."""
        self.stepped = concepts = list(batch["concepts"])
        self.current = [self.concepts[c].target for c in concepts]
        if not concepts:
            return
        losses = self.losses_of(concepts, batch["step"])
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        # the loss scale of 16-mixed alone: gradients cross processes only where these share a concept's images
        self.trainer.precision_plugin.pre_backward(losses.sum(), self).backward()
        self.loras.activate(None)
        if self.group is not None:
            losses = add_up([p for c in concepts for p in self.loras.parameters_of(c)], losses, self.group)
        optimizer.step()
        for target, loss in zip(self.current, losses.tolist(), strict=True):
            self.losses.setdefault(target, []).append(loss)
        self.log("loss", losses.detach().mean(), prog_bar=True, rank_zero_only=True, batch_size=len(concepts))
        self.log("step", float(batch["step"] + 1), prog_bar=True, rank_zero_only=True, batch_size=1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip each concept's gradient on its own, once a loss scale has been taken out of it."""
        for c in self.stepped:
            torch.nn.utils.clip_grad_norm_(self.loras.parameters_of(c), self.gradient_clip)

    # --- fuse ----------------------------------------------------------------------------------------------------

    def on_train_end(self) -> None:
        """Gather the LoRAs of all processes and solve stage 3; the UNet then holds the edited weights."""
        self.stage.close()
        check_whole(self.trainer, [self.concepts[c].target for c in self.latents], self.losses)
        own = {self.concepts[c].target: self.loras.factors(c) for c in self.latents}
        self.loras.remove(self.unet)
        for factors, losses in gathered(self.trainer, (own, self.losses)):
            self.factors |= factors
            self.losses |= losses
        self.edit = fusion(self.T, self.sums, self.factors, self.keep_fuse)
        set_weights(self.unet, self.edit.weights({n: w.cpu() for n, w in self.original.items()}))
