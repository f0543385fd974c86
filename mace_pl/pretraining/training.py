"""What the training modules share: learning rate schedule, noise that a resumed run repeats, files at the end."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn

from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, written_aside


class Pool(Protocol):
    """Images [N, 3, H, W] as uint8 and N captions, which the data module keeps as ``pool``.

    ``concepts`` and ``styles`` name what each shows and how; they are empty where the data do not tell.
    """

    images: Tensor
    captions: list[str]
    concepts: list[str]
    styles: list[str]


class TrainingModule(LightningModule):
    """AdamW with warm-up and cosine, and the parts of a pipeline folder that are written at the end of ``fit``.

    Args:
        output_dir: folder of the pipeline.
        overwrite: replace the parts where they exist.
        learning_rate: highest learning rate.
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up.
        seed: of noise and augmentation.
    """

    def __init__(
        self,
        output_dir: str,
        overwrite: bool,
        learning_rate: float,
        weight_decay: float,
        warmup_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise UserError(f"learning_rate={learning_rate} must be above 0.")
        if warmup_steps < 0:
            raise UserError(f"warmup_steps={warmup_steps} must be 0 or more.")
        self.folder = Path(output_dir)
        self.overwrite = overwrite
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.seed = seed

    def parts(self) -> Sequence[str]:
        """Names of the parts that are written into ``output_dir``."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Refuse parts that exist, and training without end.

        Raises:
            UserError: ``output_dir`` or ``trainer.max_steps`` must change.
        """
        if stage == "fit":
            for part in self.parts():
                claim_output(self.folder / part, self.overwrite, "model.output_dir")
            if self.trainer.max_steps < 1:
                raise UserError(f"trainer.max_steps={self.trainer.max_steps} must be 1 or more: the data never end.")

    def pool(self) -> Pool:
        """All images of the data module.

        Raises:
            UserError: the data module has none.
        """
        pool = getattr(getattr(self.trainer, "datamodule", None), "pool", None)
        if pool is None:
            raise UserError("data: this module needs SpriteImages, ImageFolder or another PoolDataModule.")
        return cast(Pool, pool)

    def generator(self) -> torch.Generator:
        """A CPU generator of seed, step and rank alone: a resumed run draws what an unbroken one draws."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step * 1009 + self.global_rank)

    def optimize(self, parameters: Iterable[nn.Parameter]) -> Any:
        """AdamW on ``parameters``; the learning rate rises for ``warmup_steps``, then falls to 2 % as a cosine."""
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        total = max(1, self.trainer.max_steps - self.warmup_steps)

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            return 0.51 + 0.49 * math.cos(math.pi * min(1.0, (step - self.warmup_steps) / total))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def save_half(model: Any, folder: Path) -> None:
    """Write ``model`` as float16 safetensors, aside and renamed; ``model`` itself stays as it is.

    Raises:
        UserError: weights that are not finite in float16.
    """
    half = copy.deepcopy(model).to("cpu", torch.float16)
    bad = [name for name, t in half.state_dict().items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise UserError(f"{folder.name}: {bad[0]} is not finite: training diverged. Lower model.learning_rate.")
    with written_aside(folder) as aside:
        half.save_pretrained(aside, safe_serialization=True)
        config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # a folder of the machine that trained it
        save_text(aside / "config.json", config)


def save_text(path: Path, content: Any) -> None:
    """Write a small JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
