"""Erase concepts from Stable-Diffusion-type models (MACE) with PyTorch Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mace_pl.version import __version__

if TYPE_CHECKING:
    from mace_pl.run import Run

__all__ = ["__version__", "erase"]


def erase(
    model: dict[str, Any],
    data: dict[str, Any],
    output_dir: str,
    trainer: dict[str, Any] | None = None,
    seed_everything: int = 2024,
    overwrite: bool = False,
    save_pipeline: bool = True,
    kept: list[str] | None = None,
    classifier: str | None = None,
    report_seeds: int = 1,
    export: list[str] | None = None,
    keep_every_n_steps: int = 50,
    images_every_n_steps: int = 0,
    preset: str | None = None,
) -> Run:
    """Erase concepts; the arguments are those of ``python erase.py fit``, and so is the result.

    Args:
        model: settings of ``--model``, as in ``{"pretrained": "checkpoints/emoji"}``.
        data: settings of ``--data``, as in ``{"concepts": [{"target": "ship", "anchor": "ground"}]}``.
        output_dir: folder of the edit.
        trainer: settings of ``--trainer``.
        seed_everything: the run's seed.
        overwrite: replace ``output_dir`` where it exists.
        save_pipeline: write the whole diffusers pipeline too.
        kept: names to preserve, shown and scored in the report; when None four of those next to the targets.
        classifier: folder of the CLIPModel that scores the images before and after; no scores when None.
        report_seeds: images per name, before and after.
        export: formats beside edit and refined weights: ``pipeline``, ``lora``, ``lora_diffusers``, ``lora_peft``,
            ``single_file``, ``unet``; None writes the base model's form.
        keep_every_n_steps: how often a concept in training is kept on disk; the same call resumes an interrupted run.
        preset: ``sd15``, ``sd21``, ``sdxl`` or ``tiny``, with what a card holds in GB as in ``sd15:8``; read from model
            and GPU when None.
        images_every_n_steps: how often the edit so far generates a row of images while it trains; 0 for never.

    Returns:
        The run that was written; its ``folder`` is ``output_dir``.

    Raises:
        UserError: a setting that cannot be used; the message names it, and the nearest that exists. It is a ValueError.
        KeyboardInterrupt: the run was interrupted; the same call resumes.
    """
    from mace_pl.commands.lightning_commands import fit  # imports diffusers, which takes seconds

    return fit(
        {
            "model": model,
            "data": data,
            "output_dir": output_dir,
            "trainer": trainer or {},
            "seed_everything": seed_everything,
            "overwrite": overwrite,
            "save_pipeline": save_pipeline,
            "kept": kept,
            "classifier": classifier,
            "report_seeds": report_seeds,
            "export": export,
            "keep_every_n_steps": keep_every_n_steps,
            "images_every_n_steps": images_every_n_steps,
            "preset": preset,
        },
    )
