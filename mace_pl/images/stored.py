"""Images of an original model, stored once: a report of the same model, prompts and seeds takes them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from mace_pl.errors import UserError
from mace_pl.files.identity import identity
from mace_pl.files.leftovers import clear_folder
from mace_pl.images.files import read_image
from mace_pl.images.manifest import write_image
from mace_pl.models.pipeline import autoencoder_fingerprint, image_size
from mace_pl.models.protocols import Pipeline

ORIGINALS = ".originals"  # in data.pictures; no target has a folder of this name

BATCH = 20  # as many as mace_pl.models.sampling.generate makes at once

Row = tuple[str, int]  # a prompt and a seed


class StoredImages:
    """A folder with an image per model, settings, prompt and seed; its name is the hash of all of these.

    Args:
        folder: where they lie.
        inputs: all that an image depends on beside prompt and seed: :func:`inputs_of`.

    Attributes:
        taken: how many images were there.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder, self.inputs, self.taken = folder, dict(inputs), 0
        clear_folder(folder)

    def path(self, row: Row) -> Path:
        """Where the image of a row lies."""
        prompt, seed = row
        return self.folder / f"{identity({**self.inputs, 'prompt': prompt, 'seed': seed})[:32]}.png"

    def all_of(
        self,
        rows: Sequence[Row],
        generate: Callable[[Sequence[Row]], Sequence[Image.Image]],
        progress: Callable[[int], None] | None = None,
        batch_size: int = BATCH,
    ) -> list[Image.Image]:
        """The image of each row: taken where it is there, else generated and written with its batch.

        Args:
            rows: prompts and seeds.
            generate: makes the images of some rows.
            progress: called with the number of images that were taken.
            batch_size: images that are generated before they are written.
        """
        found = {row: image for row in dict.fromkeys(rows) if (image := self._read(row)) is not None}
        self.taken = sum(row in found for row in rows)
        if progress is not None:
            progress(self.taken)
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for row, image in zip(batch, generate(batch), strict=True):
                write_image(self.path(row), image, {"prompt": row[0], "seed": row[1]})
                found[row] = image
        return [found[row] for row in rows]

    def _read(self, row: Row) -> Image.Image | None:
        """The image of a row; None where it is not there or damaged."""
        path = self.path(row)
        with suppress(UserError):
            return read_image(path, "data.pictures") if path.is_file() else None
        return None


def inputs_of(pipeline: Pipeline, model: Mapping[str, str], steps: int, guidance: float) -> dict[str, Any]:
    """All that an image depends on beside prompt and seed.

    Args:
        pipeline: the original model, with the noise scheduler that generates.
        model: fingerprints of its UNet and text encoders.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
    """
    scheduler = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    return {
        **model,
        "vae": autoencoder_fingerprint(pipeline),
        "scheduler": {"class": type(pipeline.scheduler).__name__, **scheduler},
        "size": image_size(pipeline),
        "steps": steps,
        "guidance": guidance,
    }
