"""Encode captions and sum their Gram matrix under ``predict``, whose sampler repeats no caption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule
from torch import Tensor, nn

from mace_pl.callbacks.statistics_checkpoint import PartialSums
from mace_pl.callbacks.write_statistics import WriteStatistics
from mace_pl.data.captions import Captions
from mace_pl.errors import UserError, one_line
from mace_pl.files.paths import resolve
from mace_pl.methods.gram_statistics import POOLED
from mace_pl.methods.metrics import GramMetric
from mace_pl.models.loading import LEFT_OUT, UNREADABLE, load_folder
from mace_pl.models.pipeline import HINT, load_pipeline, local_folder
from mace_pl.models.text_encoding import encode_both, encoder_fingerprint, ignores_padding, text_parts, token_counts
from mace_pl.training.options import check_trainer


def load_text_parts(
    pretrained: str, revision: str | None = None, variant: str | None = None, layout: str | None = None
) -> Any:
    """A pipeline with tokenizers and text encoders (float32, frozen); of folders and hub ids nothing else is loaded.

    Raises:
        UserError: no pipeline with a text encoder is there.
    """
    source = resolve(pretrained)
    if source.is_file():
        return load_pipeline(pretrained, revision, variant, layout)
    try:
        folder = local_folder(pretrained, source, revision, variant, (*LEFT_OUT, "unet", "vae"))
        pipeline, _ = load_folder(folder, pretrained, variant, ("text_encoder", "text_encoder_2"))
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"model.pretrained={pretrained} cannot be loaded: {one_line(error)} {HINT}") from error
    if not text_parts(pipeline)[1]:
        raise UserError(f"model.pretrained={pretrained} has no text_encoder. {HINT}")
    for encoder in text_parts(pipeline)[1]:
        encoder.requires_grad_(False)
    return pipeline


class PromptStatistics(LightningModule):
    """Sum e eᵀ over the tokens of captions, once per text encoder, into one file.

    Every edit of a model with the same text encoder can use the file to preserve what the captions speak of.

    Args:
        pretrained: folder or hub id of a Stable Diffusion pipeline, of which only the text parts are loaded,
            or a single ``.safetensors`` checkpoint in the original layout.
        output: the ``.safetensors`` file to write.
        overwrite: replace ``output`` where it exists.
        save_every: distinct captions that a rank sums between two partial files. An interrupted run resumes from
            them when the same command is given again, and ends with the same numbers.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder with the configurations of a single checkpoint's parts.
    """

    def __init__(
        self,
        pretrained: str,
        output: str,
        overwrite: bool = False,
        save_every: int = 10_000,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        if save_every < 1:
            raise UserError(f"save_every={save_every} must be at least 1.")
        self.output = output
        self.overwrite = overwrite
        self.save_every = save_every
        self.pipeline = load_text_parts(pretrained, revision, variant, layout)
        self.encoders = nn.ModuleList(text_parts(self.pipeline)[1])
        self.fingerprint = encoder_fingerprint(self.pipeline)  # before the trainer's precision casts the weights
        text, pooled = encode_both(self.pipeline, [""])
        self.width = text.shape[-1]
        self.metric = GramMetric(self.width)
        self.pooled = None if pooled is None else GramMetric(pooled.shape[-1])  # of SDXL's pooled embeddings
        self.restored: Mapping[str, Tensor] = {}  # states of an earlier run that was cut off
        self.statistics: dict[str, Tensor] = {}
        self.only_captions = self.shortens = False

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks that write ``output`` and, until it is there, partial files."""
        output = Path(self.output)
        return [WriteStatistics(output, self.overwrite), PartialSums(output, self.save_every)]

    def setup(self, stage: str) -> None:
        """See which tokens are summed, and whether padding has to be encoded for them."""
        check_trainer(self.trainer, "cache")
        data: Captions = self.trainer.datamodule  # type: ignore[attr-defined]
        self.only_captions = getattr(data, "tokens", "all") == "caption"
        self.shortens = self.only_captions and ignores_padding(self.pipeline)

    def resume(self, states: Mapping[str, Tensor]) -> None:
        """Start from the states of an earlier run that was cut off; from zero where there are none."""
        self.restored = dict(states)

    def on_predict_start(self) -> None:
        """Start from zero, or from where an earlier run was cut off: the same module may run twice."""
        self.metric.reset()
        if self.pooled is not None:
            self.pooled.reset()
        for name, value in self.states().items():
            value.copy_(self.restored.get(name, value))

    def states(self) -> dict[str, Tensor]:
        """The sums so far of this rank, by name."""
        metric = self.metric
        found = {"gram": metric.gram, "tokens": metric.tokens, "captions": metric.captions}
        return found if self.pooled is None else found | {POOLED: self.pooled.gram}

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> int:
        """Encode N captions and add them to the sums; the number of them is returned."""
        captions: list[str] = batch["caption"]
        if not captions:  # more ranks than captions
            self.metric.update(torch.empty(0, 1, self.width), batch["count"])
            if self.pooled is not None:
                self.pooled.update(torch.empty(0, 1, self.pooled.width), batch["count"])
            return 0
        lengths = token_counts(self.pipeline, captions) if self.only_captions else None
        longest = int(lengths.max()) if lengths is not None and self.shortens else None
        embeddings, pooled = encode_both(self.pipeline, captions, batch_size=len(captions), length=longest)
        self.metric.update(embeddings, batch["count"], lengths)
        if self.pooled is not None and pooled is not None:
            self.pooled.update(pooled.unsqueeze(1), batch["count"])
        return len(captions)

    def on_predict_epoch_end(self) -> None:
        """Add up the sums of all ranks, on each of them.

        Raises:
            UserError: the sums are not finite.
        """
        self.statistics = self.metric.compute()
        if self.pooled is not None:
            self.statistics[POOLED] = self.pooled.compute()["gram"]
        if not all(bool(torch.isfinite(sums).all()) for sums in self.statistics.values()):
            raise UserError(
                f"trainer.precision={self.trainer.precision} gives embeddings that are not finite. Use 32-true or "
                f"bf16-mixed."
            )
