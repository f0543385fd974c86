"""Write the edit into the output folder when training has ended; an existing folder is refused before that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import yaml
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from rich.table import Table

from mace_pl.artifacts import claim_output, write_json, write_tensors, written_aside
from mace_pl.edit import save_concept
from mace_pl.pipelines import relative_to_project
from mace_pl.sampling import draw

matplotlib.use("Agg")


class Export(Callback):
    """Writes everything a run leaves behind.

    Args:
        output_dir: the run's folder.
        overwrite: replace it where it exists.
        save_pipeline: write the whole diffusers pipeline too.
        kept: names shown beside the erased ones in the before/after picture.
        config: the complete configuration, written as ``config.yaml``.
        previews: pictures per row of the before/after picture are the first of the targets and kept names; 0 for none.
    """

    def __init__(
        self,
        output_dir: str,
        overwrite: bool = False,
        save_pipeline: bool = True,
        kept: list[str] | None = None,
        config: dict[str, Any] | None = None,
        previews: int = 10,
    ) -> None:
        self.folder = Path(output_dir)
        self.overwrite = overwrite
        self.save_pipeline = save_pipeline
        self.kept = kept or []
        self.config = config or {}
        self.previews = previews
        self.before: list[Image.Image] = []
        claim_output(self.folder, overwrite)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the pictures of the model as it was."""
        if trainer.is_global_zero:
            module: Any = pl_module
            self.before = self.pictures(module, trainer)

    def prompts(self, trainer: Any) -> list[str]:
        """The prompts of the before/after picture."""
        concepts = trainer.datamodule.concepts
        targets = [
            f"a photo in the style of {c.target}" if c.kind == "style" else f"a photo of a {c.target}" for c in concepts
        ]
        return [*targets, *(f"a photo of a {name}" for name in self.kept)][: self.previews]

    def pictures(self, module: Any, trainer: Any) -> list[Image.Image]:
        """One seeded picture per prompt by the model as it is now."""
        prompts = self.prompts(trainer)
        data = trainer.datamodule
        return draw(module.pipeline, prompts, [module.seed] * len(prompts), data.image_steps, data.image_guidance)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the run, aside and renamed, on one process."""
        if trainer.is_global_zero:
            module: Any = pl_module
            with written_aside(self.folder) as aside:
                aside.mkdir()
                self.write(aside, module, trainer)
            self.show(module, trainer)

    def write(self, folder: Path, module: Any, trainer: Any) -> None:
        """All files of the run."""
        meta = {"pretrained": module.pretrained, "text_encoder": module.fingerprint, "seed": module.seed}
        concepts = [{"target": c.target, "anchor": c.anchor, "kind": c.kind} for c in module.concepts]
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        for c in module.concepts:
            save_concept(folder, c.target, module.sums[c.target], module.factors[c.target], meta | {"target": c.target})
        module.edit.save(folder / "edit.safetensors", meta | {"concepts": concepts})
        weights = {f"{n}.weight": module.unet.get_submodule(n).weight for n in module.original}
        write_tensors(folder / "refined.safetensors", weights, "refined", meta | {"concepts": concepts})
        if self.save_pipeline:
            module.pipeline.save_pretrained(folder / "pipeline")
        self.report(folder / "report", module, trainer)

    def report(self, folder: Path, module: Any, trainer: Any) -> None:
        """Before/after picture, loss curves, metrics and a summary."""
        folder.mkdir()
        if self.before:
            after = self.pictures(module, trainer)
            width, height = self.before[0].size
            sheet = Image.new("RGB", (width * len(after), 2 * height))
            for i, (top, bottom) in enumerate(zip(self.before, after, strict=True)):
                sheet.paste(top, (i * width, 0))
                sheet.paste(bottom, (i * width, height))
            sheet.save(folder / "before_after.png")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4))
        for target, losses in module.losses.items():
            axes.plot(losses, label=target)
        axes.set(xlabel="step", ylabel="attention loss")
        axes.legend(fontsize="small")
        figure.savefig(folder / "losses.png", dpi=120)
        plt.close(figure)
        metrics = {t: {"first_loss": v[0], "last_loss": v[-1], "steps": len(v)} for t, v in module.losses.items()}
        write_json(folder / "metrics.json", {"losses": metrics, "prompts": self.prompts(trainer)})
        lines = [f"| {t} | {m['first_loss']:.2f} | {m['last_loss']:.2f} |" for t, m in metrics.items()]
        head = "# Erased concepts\n\n| target | first loss | last loss |\n|---|---|---|\n"
        (folder / "summary.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")

    def show(self, module: Any, trainer: Any) -> None:
        """A table of what was erased, and where it lies."""
        table = Table(title="Erased")
        for column in ("target", "anchor", "kind", "loss first → last"):
            table.add_column(column)
        for c in module.concepts:
            losses = module.losses[c.target]
            table.add_row(c.target, c.anchor, c.kind, f"{losses[0]:.2f} → {losses[-1]:.2f}")
        console = Console()
        console.print(table)
        console.print(
            f"Written to {relative_to_project(self.folder)}: {', '.join(sorted(p.name for p in self.folder.iterdir()))}"
        )
