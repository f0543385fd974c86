"""Images in whatever logger of Lightning a user has chosen."""

from __future__ import annotations

import numpy as np
from lightning.fabric.loggers.logger import Logger
from PIL import Image


def log_image(logger: Logger, name: str, image: Image.Image, step: int = 0) -> bool:
    """Show an image in a logger.

    Args:
        logger: with ``log_image``, as W&B's, or with an experiment that has ``add_image``, as TensorBoard's.
        name: of the series of images.
        image: the next one.
        step: the image's place in the series.

    Returns:
        Whether it took the image; some keep numbers alone.
    """
    if callable(getattr(logger, "log_image", None)):
        logger.log_image(key=name, images=[image], step=step)  # type: ignore[attr-defined]
        return True
    add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
    if add_image is None:
        return False
    add_image(name, np.asarray(image), step, dataformats="HWC")
    return True
