"""A finished edit, and the formats in which it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.export.base_model import rewrite_file, stored_dtype, write_pipeline
from mace_pl.export.lora import DEFAULT_MAX_ERROR, LORAS, WholeLora, deltas, write_lora
from mace_pl.export.lora_card import lora_card
from mace_pl.export.metadata import base_facts, described, modelspec, safe_name
from mace_pl.export.model_card import licence, model_card
from mace_pl.export.single_file import single_file, unet_names
from mace_pl.files.artifacts import provenance, write_tensors
from mace_pl.methods.chosen import source_of
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source
from mace_pl.run import PLACES, Run


def check_formats(formats: Sequence[str], setting: str) -> None:
    """Refuse formats that do not exist.

    Raises:
        UserError: naming the setting and the formats there are.
    """
    for name in formats:
        if name not in PLACES:
            raise UserError(f"{setting}={name} is no format. Choose from {', '.join(PLACES)}.")


@dataclass(frozen=True)
class Finished:
    """A finished edit on its base pipeline.

    Attributes:
        run: whose edit it is: its folder's name names LoRAs, its provenance is in every file.
        pipeline: the base pipeline; its UNet holds the edited weights.
        source: the files that it was read from.
        edit: R and the fused LoRA.
        original: the base's weights that the edit may change by layer name, on the CPU: those that read the text, and
            those of a hardening.
        metrics: ``metrics.json`` of the run's report, which need not exist; None without a report.
        seen: of a library without a report, how often each target was seen ``before`` and ``after`` its own run.
    """

    run: Run
    pipeline: Pipeline
    source: Source
    edit: Edit
    original: Mapping[str, Tensor]
    metrics: Path | None = None
    seen: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Provenance for every file, with ``pretrained``, a hub id or a bare name, and ``concepts``."""
        return self.run.provenance

    @property
    def name(self) -> str:
        """After which a LoRA is called."""
        return safe_name(self.run.home)

    @cached_property
    def loras(self) -> dict[tuple[int | None, float], WholeLora]:
        """LoRAs that were made, by rank and largest error."""
        return {}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The edited projections by layer name, in the dtype of ``original``."""
        return self.edit.weights(self.original)

    def write(
        self,
        format: str,
        path: Path,
        dtype: torch.dtype | None = None,
        rank: int | None = None,
        max_error: float = DEFAULT_MAX_ERROR,
    ) -> None:
        """Write one format.

        Args:
            format: one of :data:`PLACES`.
            path: the file or the new folder.
            dtype: of what is written; that of the base's files when None. ``edit`` is always float32, and parts that
                ``pipeline`` copies stay as they are.
            rank: of a LoRA; the smallest that keeps ``max_error`` when None.
            max_error: largest relative error of a layer of a LoRA.
        """
        stored = dtype or stored_dtype(self.pipeline, self.source, "unet")
        if format == "pipeline":
            write_pipeline(path, self.pipeline, self.source, self.weights, dtype)
            (path / "README.md").write_text(self.card(), encoding="utf-8")
        elif format == "refined":
            weights = {f"{name}.weight": weight.to(stored) for name, weight in self.weights.items()}
            write_tensors(path, weights, "refined", self.metadata)
        elif format == "edit":
            self.edit.save(path, self.metadata)
        elif format == "unet":
            weights = {
                name: weight.to(stored) for name, weight in backbone_of(self.pipeline).network.state_dict().items()
            }
            write_tensors(path, weights, "unet", self.metadata)
        elif format in LORAS:
            self.write_lora(format, path, stored, self.lora(rank, max_error))
        else:
            self.write_single_file(path, dtype)

    def write_lora(self, format: str, folder: Path, dtype: torch.dtype, lora: WholeLora) -> None:
        """Write a LoRA in one naming, and its card."""
        meta = {**self.metadata, "name": self.name}
        write_lora(folder, format, lora, self.pipeline, dtype, meta, self.said(lora=True))
        base, largest = self.source.folder, max(lora.errors.values())
        settings = (self.metadata, self.run.config, self.metrics, lora.rank, largest, self.edit.pooled is not None)
        hardened = bool(self.edit.hardening)
        card = lora_card(format, self.name, base, *settings, hardened=hardened, seen=self.seen)
        (folder / "README.md").write_text(card, encoding="utf-8")

    def lora(self, rank: int | None, max_error: float) -> WholeLora:
        """The LoRA of the whole edit; made once for all its namings."""
        if (rank, max_error) not in self.loras:
            self.loras[rank, max_error] = WholeLora.of(deltas(self.edit, self.original), rank, max_error)
        return self.loras[rank, max_error]

    def write_single_file(self, path: Path, dtype: torch.dtype | None) -> None:
        """Write one checkpoint in the original layout; of a single checkpoint a copy with other keys and values."""
        said = self.said(lora=False)
        if self.source.file and dtype is None:
            names, header = (
                unet_names(backbone_of(self.pipeline).network),
                provenance("single_file", self.metadata) | said,
            )
            rewrite_file(path, self.source.file, names, self.weights, header)
        else:
            write_tensors(path, single_file(self.pipeline, self.source, dtype), "single_file", self.metadata, said)

    def said(self, lora: bool) -> dict[str, str]:
        """What a LoRA or a checkpoint says about itself to other programs."""
        known = licence(self.source.folder)
        method = source_of(self.run.config).split(" (")[0]
        text = described(self.metadata["concepts"], self.metadata["pretrained"], method)
        licensed = known.get("license_name") or known.get("license")
        return modelspec(self.pipeline, self.name, text, licensed, lora, base_facts(self.source.file))

    def card(self) -> str:
        """The model card of ``pipeline``."""
        meta = self.metadata
        base, strengths = self.source.folder, meta.get("weights")
        changed = (self.edit.pooled is not None, self.edit.hardening)
        what = (meta["pretrained"], meta["concepts"], self.run.config, self.metrics, strengths)
        return model_card(base, *what, *changed, self.seen)
