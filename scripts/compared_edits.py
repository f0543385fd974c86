"""Edits of one original in one process: a solve for a closed form alone, all stages for MACE."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from compared import Method, Settings, Targets
from lightning.pytorch import seed_everything
from torch import Tensor

from mace_pl.concepts.concept import Concept, templates_of
from mace_pl.concepts.preservation import StageWeights
from mace_pl.concepts.vocabulary import own_names
from mace_pl.data.concepts import ConceptData
from mace_pl.methods import ClosedForm
from mace_pl.methods.fusion import added
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.stages.anchors import Choice, choose_anchors
from mace_pl.stages.preserve import preserving
from mace_pl.stages.refine import check_anchors, refine_concepts
from mace_pl.training.memory import Peak
from mace_pl.training.trainer import MaceTrainer


def cast(pipeline: Any, dtype: torch.dtype) -> Any:
    """A pipeline with all of its networks in another dtype."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, dtype)  # diffusers' own warns of layers to be kept in float32 where there are none
    return pipeline


class Edits:
    """Makes edits of a pipeline, and puts them into it.

    Args:
        pretrained: the original.
        prior: file of prior statistics.
        pictures: folder for images of targets, which methods that train need.
        dtype: of the pipeline that generates what is judged; edits are made in float32.
        device: of that pipeline; edits are made on the CPU.

    Attributes:
        pipeline: the original in float32, which edits are made of.
        generating: the pipeline that generates, with whatever edit was put into it.
    """

    def __init__(
        self, pretrained: str, prior: str, pictures: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        self.pretrained, self.prior, self.pictures = pretrained, prior, pictures
        self.pipeline, self.generating = load_pipeline(pretrained), cast(load_pipeline(pretrained), dtype).to(device)
        self.backbone = backbone_of(self.pipeline)
        self.fingerprint = encoder_fingerprint(self.pipeline)
        others = self.backbone.weights_of(self.backbone.attention_layers("all"))  # a hardening changes these too
        self.original = others | {name: W.clone() for name, W in self.backbone.text_layers().items()}

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Let the pipeline that generates have the original's weights, but for some."""
        backbone_of(self.generating).set_key_values({**self.original, **weights})

    def anchored(self, targets: Targets, keep: Sequence[str], clip: str, guidance: float) -> Targets:
        """The targets with the anchors that ``fit`` would choose where they have none.

        Args:
            targets: with or without anchors.
            keep: names that are preserved, unless they are targets.
            clip: folder of the CLIP that looks whether an anchor is generated well.
            guidance: classifier-free guidance scale of what it looks at.
        """
        concepts = [Concept(**concept) for concept in targets.concepts]
        erased = [concept.target for concept in concepts]
        choice = Choice(targets.anchors, [n for n in keep if n not in erased], (), clip, 30, guidance)
        found = choose_anchors(self.pipeline, concepts, choice, True)
        made = [{"target": c.target, "anchor": found.get(c.target, c.anchor), "kind": c.kind} for c in concepts]
        return replace(targets, concepts=made)

    def make(
        self, method: Method, settings: Settings, targets: Targets, keep: list[str]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The edited weights, with ``seconds`` of the processor and ``peak_mb`` of making them beyond the loaded model.

        Seconds of the processor, all its cores together, are the same beside other programs; those of a clock are not.

        Loading the model counts as neither, images of the targets count where they are not there yet.

        Raises:
            UserError: a singular system, or settings out of range.
        """
        form = method.made(settings)
        concepts = [{**c, "anchor": c["anchor"] if form.anchored else ""} for c in targets.concepts]
        model = self.preserved(form, settings, keep)
        peak, started = Peak(), time.process_time()
        if form.trains:
            data = {k.removeprefix("data."): v for k, v in settings.items() if k.startswith("data.")}
            model |= {k.removeprefix("model."): v for k, v in settings.items() if k.startswith("model.")}
            model |= {"method": form, "lr": settings["lr"]}
            weights, started = self.trained(model, concepts, data, settings.get("fusion", "closed form"))
        else:
            weights = self.solved(model, form, concepts)
        cost = {"seconds": time.process_time() - started, "peak_mb": (peak.bytes() - peak.before) / 2**20}
        return weights, cost

    def preserved(self, form: ClosedForm, settings: Settings, keep: list[str]) -> dict[str, Any]:
        """Weights of the stages, and what they weigh."""
        stages = {
            stage: StageWeights(
                **{k.removeprefix(f"{stage}."): v for k, v in settings.items() if k.startswith(f"{stage}.")}
            )
            for stage in ("refine", "fuse")
        }
        counting = list(stages.values()) if form.trains else [stages["refine"]]
        named = form.reads_names or any(weights.domain for weights in counting)
        prior = self.prior if any(weights.prior for weights in counting) else None
        return {**stages, "prior": prior, "domain_names": keep if named else None}

    def solved(self, model: Mapping[str, Any], form: ClosedForm, concepts: list[dict[str, str]]) -> dict[str, Tensor]:
        """By a closed form alone."""
        erased = [Concept(**concept) for concept in concepts]
        check_anchors(form, erased)
        wanted = preserving(model, (model["refine"], model["fuse"]), form, self.backbone, self.fingerprint)
        refined = refine_concepts(self.pipeline, erased, templates_of(None, erased), form, wanted, attend_padding=True)
        return refined.weights()

    def trained(
        self, model: Mapping[str, Any], concepts: list[dict[str, str]], data: Mapping[str, Any], fusion: str
    ) -> tuple[dict[str, Tensor], float]:
        """By all stages, the last by its closed form or LoRAs "added"; the weights, and when the model was loaded."""
        seed_everything(2024, verbose=False)
        module = ConceptErasure(self.pretrained, **model)
        started = time.process_time()
        given = ConceptData(concepts, pictures=str(self.pictures), **data)
        given.ask_in(own_names(module.source))  # as fit does
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": 1}
        MaceTrainer(**quiet, enable_model_summary=False, accelerator="cpu").fit(module, datamodule=given)
        assert module.edit is not None and module.refined is not None and module.trained is not None
        simply = fusion == "added"
        edit = added(module.refined.edit, list(module.trained.factors.values())) if simply else module.edit
        return edit.weights(self.original), started
