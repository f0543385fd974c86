"""Try to bring erased targets back, under ``attack``: hidden prompts, and tokens optimised against the edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from PIL import Image
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric

from mace_pl.data.attack_prompts import AttackPrompts
from mace_pl.errors import UserError
from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.evaluation.token_attack import check_attackable, encode_attacked, optimise_tokens
from mace_pl.export.apply import load_edited
from mace_pl.files.artifacts import claim_output, write_json
from mace_pl.files.markdown import markdown_table
from mace_pl.files.paths import model_name, place_name
from mace_pl.files.screen import screen
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import image_latents, load_pipeline, model_fingerprint
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate
from mace_pl.training.options import check_trainer

COLUMNS = ("target", "asked for by", "images", "original", "edited")


class SeenCounts(Metric):
    """In how many images the target is seen.

    Args:
        targets: C.
        kinds: K, the ways of asking.
    """

    full_state_update = False
    seen: Tensor
    generated: Tensor

    def __init__(self, targets: int, kinds: int) -> None:
        super().__init__()
        self.add_state("seen", torch.zeros(targets, kinds, 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("generated", torch.zeros(targets, kinds, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, target: int, kind: int, original: Tensor, edited: Tensor) -> None:
        """Add N images of either model, [N] bool each: whether the target is seen."""
        self.generated[target, kind] += len(edited)
        self.seen[target, kind, 0] += int(original.sum())
        self.seen[target, kind, 1] += int(edited.sum())

    def compute(self) -> dict[str, Tensor]:
        """``seen`` [C, K, 2] (original, edited) and ``generated`` [C, K]."""
        return {"seen": self.seen, "generated": self.generated}


class Attack(LightningModule):
    """Success rates of ways to ask for an erased target, on the original and on the edited model.

    ``gradient`` optimises free tokens in front of the plain prompt, until the edited model explains an image of the
    target that the original generated; its success "original" is that of the plain prompt on the edited model, before
    the attack.

    Args:
        pretrained: the original pipeline: folder, hub id or single checkpoint.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder with the configurations of a single checkpoint's parts.
        edited: the edit: an output folder of ``fit``, one of its files, or a whole pipeline.
        classifier: folder of the CLIPModel that says what an image shows.
        output: the JSON file with all figures; a table in Markdown is written beside it.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        tokens: free tokens of the gradient attack.
        attack_steps: of its optimisation.
        attack_lr: its learning rate.
        attack_samples: noises and timesteps in each of its steps.
        seed: of its first tokens, noises and timesteps.
        overwrite: replace ``output`` where it exists.
    """

    def __init__(
        self,
        pretrained: str,
        edited: str,
        classifier: str = "checkpoints/emoji/clip",
        output: str = "checkpoints/scores/attack.json",
        steps: int = 20,
        guidance: float = 5.0,
        tokens: int = 4,
        attack_steps: int = 40,
        attack_lr: float = 0.1,
        attack_samples: int = 4,
        seed: int = 2024,
        overwrite: bool = False,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        claim_output(Path(output), overwrite, "model.output")
        for name, value in (("tokens", tokens), ("attack_steps", attack_steps), ("attack_samples", attack_samples)):
            if value < 1:
                raise UserError(f"model.{name}={value} must be at least 1.")
        self.output, self.judge_folder = Path(output), classifier
        self.original = load_pipeline(pretrained, revision, variant, layout)
        self.edited = load_edited(pretrained, edited, revision, variant, layout)
        check_attackable(self.edited)
        self.steps, self.guidance, self.seed = steps, guidance, seed
        self.tokens, self.attack_samples = tokens, attack_samples
        self.attack_steps, self.attack_lr = attack_steps, attack_lr
        self.unets = torch.nn.ModuleList([backbone_of(p).network for p in (self.original, self.edited)])
        fingerprints = {"original": model_fingerprint(self.original), "edited": model_fingerprint(self.edited)}
        options = {"steps": steps, "guidance": guidance, "tokens": tokens, "attack_steps": attack_steps}
        options |= {"attack_lr": attack_lr, "attack_samples": attack_samples, "seed": seed}
        named = {"pretrained": model_name(pretrained), "edited": place_name(edited), "fingerprints": fingerprints}
        self.settings = named | options
        self.results: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """The classifier over the data's names, and the counts."""
        check_trainer(self.trainer, "attack")
        data: AttackPrompts = self.trainer.datamodule  # type: ignore[attr-defined]
        self.names, self.targets, self.kinds = data.names, data.targets, data.kinds
        self.judge = ClipClassifier(self.judge_folder, data.names, data.template)
        self.counts = SeenCounts(len(data.targets), len(data.kinds))

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Generate images for one way of asking by both models, or optimise tokens and generate with them."""
        with torch.inference_mode(False), torch.no_grad():  # what is made here may be differentiated by the attack
            for pipeline in (self.original, self.edited):
                pipeline.to(self.device)
            prompts, seeds = batch["prompt"], batch["seed"]
            first, second = (self.generate(pipeline, prompts, seeds) for pipeline in (self.original, self.edited))
            if batch["kind"] == "gradient":
                first, second = second, self.attacked(batch["target"], prompts[0], seeds[0], first)
            seen = [self.sees(batch["target"], images) for images in (first, second)]
            self.counts.update(self.targets.index(batch["target"]), self.kinds.index(batch["kind"]), *seen)

    def generate(self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """An image per prompt and seed."""
        return generate(pipeline, prompts, seeds, self.steps, self.guidance, len(prompts))

    def attacked(self, target: str, prompt: str, seed: int, images: Sequence[Image.Image]) -> list[Image.Image]:
        """The edited model's image for the prompt behind tokens that were optimised for the target's image."""
        latents = image_latents(self.edited, images).expand(self.attack_samples, -1, -1, -1)
        generator = stream(self.seed, target, "attack", seed)
        with torch.enable_grad():
            free, _ = optimise_tokens(
                self.edited, prompt, latents, self.tokens, self.attack_steps, self.attack_lr, generator
            )
        result = self.edited(
            prompt_embeds=encode_attacked(self.edited, prompt, free),
            negative_prompt="",
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=torch.Generator().manual_seed(seed),
        )
        generated: list[Image.Image] = result.images
        return generated

    def sees(self, target: str, images: Sequence[Image.Image]) -> Tensor:
        """[N] whether the classifier takes an image for the target."""
        seen: Tensor = self.judge(images).argmax(-1) == self.names.index(target)
        return seen

    def on_test_epoch_end(self) -> None:
        """Add up the ranks' counts, print the table and write the figures."""
        counts = self.counts.compute()
        seen, generated = counts["seen"].tolist(), counts["generated"].tolist()
        for c, target in enumerate(self.targets):
            self.results[target] = {}
            for k, kind in enumerate(self.kinds):
                n, (original, edited) = generated[c][k], seen[c][k]
                names = ("before", "after") if kind == "gradient" else ("original", "edited")
                if n:
                    self.results[target][kind] = {"images": n, names[0]: original / n, names[1]: edited / n}
        if self.trainer.is_global_zero:
            self.write()

    def rows(self) -> list[list[str]]:
        """Cells of the table."""
        rows = []
        for target, kinds in self.results.items():
            for kind, figures in kinds.items():
                count, *rates = figures.values()
                said = "free tokens (edited: before, after)" if kind == "gradient" else kind
                rows.append([target, said, str(count), *[f"{rate:.2f}" for rate in rates]])
        return rows

    def write(self) -> None:
        """The figures as JSON, and as a table in Markdown and on the screen."""
        data: AttackPrompts = self.trainer.datamodule  # type: ignore[attr-defined]
        facts = {"names": self.names, "prompts": data.prompts, "seeds": data.seeds, "attacks": data.attacks}
        settings = self.settings | {"classifier": place_name(self.judge_folder)} | facts
        write_json(self.output, {"settings": settings, "success": self.results})
        markdown = self.output.with_suffix(".md")
        markdown.write_text(markdown_table(COLUMNS, self.rows()) + "\n", encoding="utf-8")
        table = Table(*COLUMNS, title="How often the target is seen")
        for row in self.rows():
            table.add_row(*row)
        console = screen()
        console.print(table)
        console.print(f"Written to {self.output} and {markdown}", highlight=False)
