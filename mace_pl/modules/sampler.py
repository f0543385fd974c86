"""Generate images of prompts under ``predict``, on any number of devices, into a folder with a manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule
from torch.utils.data import DataLoader

from mace_pl.data.prompts import Prompts
from mace_pl.errors import UserError
from mace_pl.export.apply import apply_files
from mace_pl.files.leftovers import clear_folder
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.paths import model_name, place_name
from mace_pl.files.screen import screen
from mace_pl.images.manifest import begin, drop_aside, image_name, set_aside, write_image, write_manifest
from mace_pl.models.backbone import backbone_of
from mace_pl.models.on_device import OnDevice
from mace_pl.models.pipeline import load_pipeline, model_fingerprint, set_scheduler
from mace_pl.models.sampling import generate
from mace_pl.training.options import check_trainer


class Sampler(LightningModule):
    """An image per row of the data, each from its own generator: batches and devices do not change it.

    The folder gets a PNG per row and ``manifest.json`` with prompt, seed, the model's fingerprint and settings, all
    of them in each PNG too. An interrupted run resumes when its command is given again.

    Args:
        pretrained: the model: folder, hub id or single checkpoint.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder with the configurations of a single checkpoint's parts.
        output: folder of the images.
        apply: files that are put on the model first: ``edit.safetensors``, ``refined.safetensors``, output folders of
            ``fit``, LoRAs.
        scheduler: a scheduler of diffusers, such as DPMSolverMultistepScheduler; the model's own when None.
        steps: denoising steps.
        guidance: classifier-free guidance scale, where a row has no column for it.
        negative: a negative prompt for all rows.
        height: of the images in pixels; the model's own when None.
        width: likewise.
        overwrite: replace the images that a manifest in ``output`` names, which are removed once the new ones are
            generated.
    """

    def __init__(
        self,
        pretrained: str,
        output: str = "checkpoints/generated/samples",
        apply: list[str] | None = None,
        scheduler: str | None = None,
        steps: int = 30,
        guidance: float = 5.0,
        negative: str | None = None,
        height: int | None = None,
        width: int | None = None,
        overwrite: bool = False,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise UserError(f"model.steps={steps} must be at least 1.")
        for name, value in (("height", height), ("width", width)):
            if value is not None and (value < 8 or value % 8):
                raise UserError(f"model.{name}={value} must be a positive multiple of 8.")
        self.output, self.overwrite = Path(output), overwrite
        edits = [(f"edit {file}", file) for file in apply or []]
        refuse_inputs(self.output, [("base model", pretrained), *edits], "model.output")
        self.files: list[str] = []  # this and the next: of the rows, once the folder is claimed
        self.done: Collection[int] = ()
        self.steps, self.guidance, self.negative, self.size = steps, guidance, negative, (height, width)
        self.pipeline = load_pipeline(pretrained, revision, variant, layout)
        apply_files(self.pipeline, apply or [])
        if scheduler is not None:
            set_scheduler(self.pipeline, scheduler)
        self.unet, self.placed = backbone_of(self.pipeline).network, OnDevice(self.pipeline)
        fingerprint = model_fingerprint(self.pipeline)
        applied = [place_name(file) for file in apply or []]
        self.source = {"pretrained": model_name(pretrained), "apply": applied, "fingerprint": fingerprint}
        self.settings = {
            "scheduler": type(self.pipeline.scheduler).__name__,
            "steps": steps,
            "guidance": guidance,
            "negative": negative,
            "height": height,
            "width": width,
        }

    @property
    def data(self) -> Prompts:
        """The rows."""
        return self.trainer.datamodule  # type: ignore[attr-defined,no-any-return]

    def setup(self, stage: str) -> None:
        """Claim the folder and leave out the rows that it holds."""
        check_trainer(self.trainer, "predict")
        data = self.data
        self.files = [image_name(i, row) for i, row in enumerate(data.rows)]
        rows = [{"file": file, **row} for file, row in zip(self.files, data.rows, strict=True)]
        content = {"model": self.source, "settings": self.settings, "rows": rows}
        if self.trainer.is_global_zero:
            clear_folder(self.output)
            if self.overwrite:
                set_aside(self.output)
        self.trainer.strategy.barrier("the folder is as it was left")
        self.done = begin(self.output, content)
        self.trainer.strategy.barrier("all have seen what is done")
        if self.trainer.is_global_zero:
            write_manifest(self.output, content)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """This rank's share of the rows that the folder does not hold."""
        return self.data.share(self.done, self.global_rank, self.trainer.world_size)

    def on_predict_start(self) -> None:
        """The pipeline goes to the device."""
        self.placed.enter(self.device)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> int:
        """Generate and write the images of a batch of rows; returns their number."""
        prompts, seeds = batch["prompt"], batch["seed"]
        size, guidance = len(prompts), self.guidance if batch["guidance"] is None else batch["guidance"]
        generated = generate(
            self.pipeline, prompts, seeds, self.steps, guidance, size, negative=self.negative, size=self.size
        )
        settings = {**self.settings, "guidance": guidance}
        for index, prompt, seed, image in zip(batch["index"], prompts, seeds, generated, strict=True):
            facts = {"prompt": prompt, "seed": str(seed), "model": self.source, "settings": settings}
            write_image(self.output / self.files[index], image, facts)
        return size

    def on_predict_end(self) -> None:
        """The pipeline leaves the device, and the images that were replaced are not needed any more."""
        self.placed.leave()
        self.trainer.strategy.barrier("all images are generated")
        if self.trainer.is_global_zero:
            drop_aside(self.output)
            screen().print(f"{len(self.files)} images are in {self.output}", highlight=False)
