"""Images of the page as files. Gradio would write an image that it has again over itself, while a browser reads it."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mace_pl.files.artifacts import written_aside

MOST = 1024  # files; Gradio takes its copy as soon as a function has returned


class ImageFiles:
    """A folder of PNGs, each named by its content, whole when it is there, and never written again.

    Args:
        folder: which is there.
        most: files; beyond that those that were asked for longest ago are removed.
    """

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self.folder, self.most = folder, most
        self._known: dict[str, Path] = {}  # in the order in which they were asked for
        self._writing = threading.Lock()

    def places(self, images: Sequence[Image.Image]) -> list[str]:
        """Where each image lies."""
        return [str(self._place(image)) for image in images]

    def _place(self, image: Image.Image) -> Path:
        content = io.BytesIO()
        image.save(content, "png")
        name = hashlib.sha256(content.getvalue()).hexdigest()[:32]
        with self._writing:
            path = self._known.pop(name, None)
            if path is None:
                path = self.folder / f"{name}.png"
                with written_aside(path, clear=False) as aside:
                    aside.write_bytes(content.getvalue())
            self._known[name] = path
            while len(self._known) > self.most:
                self._known.pop(next(iter(self._known))).unlink(missing_ok=True)
        return path
