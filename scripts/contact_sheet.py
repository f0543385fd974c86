"""Generate the ten CIFAR-10 names in all styles and manners by the bundled model, as one image.

Run it as ``python scripts/contact_sheet.py``. Takes about a minute on two CPU cores.
"""

from __future__ import annotations

from pathlib import Path

from diffusers.utils import make_image_grid
from runs import run

from mace_pl.files.artifacts import claim_output
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.sampling import generate
from mace_pl.pretraining.styles import MANNERS

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STYLES = ("noto", "blob", "fluent", "fluent flat", "twemoji", "emojione", *MANNERS)


def main(
    pretrained: str = "checkpoints/emoji",
    output: str = "checkpoints/emoji/contact_sheet.png",
    steps: int = 30,
    guidance: float = 5.0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """One row per style, one column per name, the same seed everywhere."""
    claim_output(Path(output), overwrite, "output")
    prompts = [f"a photo of a {name} in the style of {style}" for style in STYLES for name in TEN]
    images = generate(load_pipeline(pretrained), prompts, [seed] * len(prompts), steps, guidance)
    make_image_grid(images, rows=len(STYLES), cols=len(TEN)).save(output)
    print(f"Written to {output}")


if __name__ == "__main__":
    run(main)
