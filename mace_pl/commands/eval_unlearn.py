"""A bridge to eval-unlearn, which scores edits of many methods: an edit as one of its techniques, and its inputs.

``python -m mace_pl.commands.eval_unlearn --run RUN --output FOLDER`` writes, for each target of a finished run, a
configuration and two tables of prompts: the target is what is erased, its anchor is what is preserved. ``eval-unlearn
run --config FOLDER/ship.json`` then generates by base and edit, and scores. Nothing of eval-unlearn is imported here;
it finds :class:`Technique` by the entry point ``mace_pl`` of the group ``eval_unlearn.techniques``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli
from PIL import Image

from mace_pl.concepts.templates import TEMPLATES
from mace_pl.errors import UserError
from mace_pl.export.apply import apply_files
from mace_pl.files.artifacts import slug, write_json, written_aside
from mace_pl.files.owned import refuse_inputs
from mace_pl.models.sampling import generate
from mace_pl.run import Run

NAME = "mace_pl"  # of the entry point; eval-unlearn has a technique "mace" of its own


class Technique:
    """Base and edit of a finished run, as eval-unlearn asks for images.

    Args:
        run: output folder of ``fit`` or ``fuse``.
        erase_concept: one of the run's targets, by which eval-unlearn names its results.
        pretrained: the base model; the run's own when None.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        seed: of the first image; each later one has the next seed, whatever batches they come in.
        batch_size: images at once.
        device: where they are generated; a GPU when None and there is one.
    """

    def __init__(
        self,
        run: str,
        erase_concept: str,
        pretrained: str | None = None,
        steps: int = 50,
        guidance: float = 7.5,
        seed: int = 0,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        finished = Run.load(run)
        targets = finished.targets
        if erase_concept.lower() not in {target.lower() for target in targets}:
            raise UserError(f"erase_concept={erase_concept} is no target of {run}. It erases {', '.join(targets)}.")
        self.pipeline, *_ = finished.base.load(pretrained)
        apply_files(self.pipeline, [str(finished.folder)], "run")
        self.pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.steps, self.guidance, self.batch_size = steps, guidance, batch_size
        self.next_seed = seed

    def generate(
        self,
        prompts: Sequence[str],
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> list[Image.Image]:
        """An image per prompt, each with a seed of its own: ``seed`` and those behind it, or the next of the run."""
        first = self.next_seed if seed is None else seed
        if seed is None:
            self.next_seed += len(prompts)
        steps = self.steps if num_inference_steps is None else num_inference_steps
        guidance = self.guidance if guidance_scale is None else guidance_scale
        return generate(self.pipeline, prompts, range(first, first + len(prompts)), steps, guidance, self.batch_size)


def write_inputs(run: str, output: str, images: int = 50) -> Path:
    """Write what ``eval-unlearn run --config`` takes: per target a configuration and its tables of prompts.

    Args:
        run: output folder of ``fit`` or ``fuse``.
        output: folder to write into; results go into ``results`` there.
        images: images of each target and of each anchor; the project's templates take turns.

    Returns:
        The folder.

    Raises:
        UserError: no finished run there, or fewer than one image.
    """
    if images < 1:
        raise UserError(f"images={images} must be at least 1.")
    folder, loaded = Path(output), Run.load(run)
    refuse_inputs(folder, [("run", loaded.home)], "output")
    folder.mkdir(parents=True, exist_ok=True)
    for concept in loaded.concepts:
        target, anchor = concept["target"], concept["anchor"]
        templates = TEMPLATES[concept.get("kind", "object")]
        files = {}
        for role, name in (("target", target), ("retain", anchor)):
            files[role] = folder / f"{slug(target)}_{role}.csv"
            prompts = [templates[i % len(templates)].replace("{}", name) for i in range(images)]
            with written_aside(files[role]) as aside, aside.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["prompt"], *([prompt] for prompt in prompts)])
        metric = {
            "target_prompts_path": str(files["target"]),
            "retain_prompts_path": str(files["retain"]),
            "target_concept": target,
            "retain_concept": anchor,
            "batch_size": 2 * images,  # all at once: 1.1.2 looks for the targets at the start of every batch
        }
        content = {
            "technique": {"name": NAME, "config": {"run": run, "erase_concept": target}},
            "metrics": [{"name": "ua_ira", "config": metric}],
            "output_dir": str(folder / "results"),
        }
        write_json(folder / f"{slug(target)}.json", content)
    return folder


if __name__ == "__main__":
    print(f"Written to {auto_cli(write_inputs, as_positional=False)}")
