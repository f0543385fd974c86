"""Try to bring erased targets back, under ``attack``: hidden prompts, and attacks on the edit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric

from mace_pl.data.attack_prompts import AttackPrompts
from mace_pl.errors import Advice, UserError
from mace_pl.evaluation.attack_page import attack_page
from mace_pl.evaluation.attack_results import COLUMNS, figures, result_rows
from mace_pl.evaluation.attacks.registry import ATTACKS, IN_TURN, SIDE_BY_SIDE, check_attacks
from mace_pl.evaluation.attacks.trial import Strengths, Trial
from mace_pl.evaluation.clip import ClipEncoder
from mace_pl.evaluation.judges import CLIP, Judges, judge_labels
from mace_pl.evaluation.report_images import ORIGINAL, Gallery
from mace_pl.evaluation.words import Words
from mace_pl.evaluation.write_scores import claim_scores
from mace_pl.export.apply import load_edited
from mace_pl.files.artifacts import write_json, written_aside
from mace_pl.files.markdown import markdown_table
from mace_pl.files.owned import refuse_files
from mace_pl.files.paths import model_name, place_name, resolve
from mace_pl.files.screen import screen
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.on_device import OnDevice
from mace_pl.models.pipeline import image_latents, load_pipeline, model_fingerprint
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate
from mace_pl.models.text_encoding import check_free_tokens
from mace_pl.run import Run
from mace_pl.training.options import check_trainer


class SeenCounts(Metric):
    """In how many images, or in how many trials of an attack, each judge sees the target.

    Args:
        edits: E.
        targets: C.
        kinds: K, the ways of asking.
        judges: J.
        turns: M, the candidates of an attack that come one after the other.
    """

    full_state_update = False
    seen: Tensor
    within: Tensor
    generated: Tensor

    def __init__(self, edits: int, targets: int, kinds: int, judges: int, turns: int) -> None:
        super().__init__()
        shape = (edits, targets, kinds, judges)
        self.add_state("seen", torch.zeros(*shape, 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(*shape, turns, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("generated", torch.zeros(targets, kinds, dtype=torch.int64), dist_reduce_fx="sum")

    def count(self, target: int, kind: int, images: int) -> None:
        """So many images or trials more, of each edit."""
        self.generated[target, kind] += images

    def update(self, edit: int, target: int, kind: int, before: Tensor, after: Tensor) -> None:
        """Add N images before and M after, [N, J] bool each: whether the target is seen."""
        self.seen[edit, target, kind, :, 0] += before.sum(0).to(self.seen)
        self.seen[edit, target, kind, :, 1] += after.sum(0).to(self.seen)

    def turn(self, edit: int, target: int, kind: int, candidates: Tensor) -> None:
        """Add a trial whose candidates [M, J] bool come in turn: whether one so far shows the target."""
        self.within[edit, target, kind] += candidates.cummax(0).values.T.to(self.within)

    def compute(self) -> dict[str, Tensor]:
        """``seen`` [E, C, K, J, 2] (before, after), ``within`` [E, C, K, J, M] and ``generated`` [C, K]."""
        return {"seen": self.seen, "within": self.within, "generated": self.generated}


class Attack(LightningModule):
    """Success rates of ways to ask for an erased target, on the original and on edited models.

    Hidden prompts are given to the original and to the edited model. An attack's rate "before" is that of the plain
    prompt on the edited model with the same seeds, "after" the share of trials in which one of its candidates shows the
    target. Each judge is asked.

    Args:
        pretrained: the original pipeline: folder, hub id or single checkpoint.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder with the configurations of a single checkpoint's parts.
        edited: the edit: an output folder of ``fit``, one of its files, or a whole pipeline; or a list of edits, which
            are attacked with the same seeds and shown side by side.
        classifier: folder of the CLIPModel that says what an image shows.
        judge: what says which name an image shows, in place of the classifier: a :class:`torch.nn.Module`, or a list of
            them, with ``clip`` for the classifier.
        output: the JSON file with all figures; a table in Markdown and a page with images are written beside it.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        strengths: how hard the attacks try.
        seed: of all that an attack draws but an image's first noise.
        overwrite: replace ``output`` where it exists.
    """

    def __init__(
        self,
        pretrained: str,
        edited: list[str] | str,
        classifier: str = "checkpoints/emoji/clip",
        judge: torch.nn.Module | list[Literal["clip"] | torch.nn.Module] | None = None,
        output: str = "checkpoints/scores/attack.json",
        steps: int = 20,
        guidance: float = 5.0,
        strengths: Strengths = Strengths(),  # noqa: B008 - frozen; jsonargparse shows its fields
        seed: int = 2024,
        overwrite: bool = False,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        claim_scores(Path(output), overwrite, pretrained)
        self.output, self.judge_folder = Path(output), classifier
        edits = [edited] if isinstance(edited, str) else edited
        self.edits = {place_name(edit): edit for edit in edits}
        if not edits or len(self.edits) < len(edits) or ORIGINAL in self.edits:
            raise UserError(f"model.edited={edits} must name at least one edit, in folders of different names.")
        self.original = load_pipeline(pretrained, revision, variant, layout)
        check_free_tokens(self.original, strengths.tokens, "model.strengths.tokens")
        self.edited = [load_edited(pretrained, edit, revision, variant, layout) for edit in self.edits.values()]
        self.steps, self.guidance, self.seed, self.strengths = steps, guidance, seed, strengths
        self.given_judges = judge if isinstance(judge, list) else [CLIP if judge is None else judge]
        self.labels = judge_labels(self.given_judges)
        if not self.labels:
            raise UserError("model.judge is empty. Name at least one judge, as in [clip], or leave the setting out.")
        self.networks = torch.nn.ModuleList(backbone_of(one).network for one in (self.original, *self.edited))
        prints = [model_fingerprint(pipeline) for pipeline in (self.original, *self.edited)]
        named = {"pretrained": model_name(pretrained), "edited": list(self.edits), "judges": self.labels}
        fingerprints = dict(zip((ORIGINAL, *self.edits), prints, strict=True))
        options = {"steps": steps, "guidance": guidance, "seed": seed, "strengths": asdict(strengths)}
        self.settings = named | {"fingerprints": fingerprints} | options
        self.clip, self.placed = ClipEncoder(classifier), OnDevice(self.original, *self.edited)
        self.gallery = Gallery(self.output.with_name(f".{self.output.name}.images.partial"), [])
        self.judges = Judges([], self.clip, Words([], {}), [], strict=False)  # this and the next: made by setup
        self.counts = SeenCounts(0, 0, 0, 0, 0)
        self.results: dict[str, Any] = {}

    @property
    def data(self) -> AttackPrompts:
        """The names, the ways of asking and their prompts."""
        return self.trainer.datamodule  # type: ignore[attr-defined,no-any-return]

    def setup(self, stage: str) -> None:
        """The judges over the data's names, and the counts."""
        check_trainer(self.trainer, "attack")
        data = self.data
        check_attacks(data.attacks, "data.attacks")
        read = [("data.names", data.names_file), *(("model.edited", edit) for edit in self.edits.values())]
        outputs = [self.output, self.output.with_suffix(".md"), self.output.with_suffix(".html")]
        refuse_files(outputs, read, "model.output")
        warn_of_unerased(self.edits.values(), data.targets)
        words = Words(data.names, {})
        self.judges = Judges(self.given_judges, self.clip, words, [data.template], strict=False)
        shape = (len(self.edits), len(data.targets), len(data.kinds), len(self.labels))
        self.counts = SeenCounts(*shape, len(self.strengths.finetune))
        cells = [(kind, trial) for kind in range(len(data.kinds)) for trial in range(data.trials)]
        self.gallery = Gallery(self.gallery.folder, cells)

    def on_test_start(self) -> None:
        """All pipelines go to the device."""
        self.placed.enter(self.device)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Generate images for one way of asking by all models, or attack the edited ones."""
        target, kind = batch["target"], batch["kind"]
        row, column = self.data.targets.index(target), self.data.kinds.index(kind)
        with torch.inference_mode(False), torch.no_grad():  # what is made here may be differentiated by an attack
            prompts, seeds = batch["prompt"], batch["seed"]
            originals = self.generate(self.original, prompts, seeds)
            self.counts.count(row, column, len(prompts))
            for number, edited in enumerate(self.edited):
                generated = self.generate(edited, prompts, seeds)
                if kind not in ATTACKS:
                    seen = (self.sees(target, originals), self.sees(target, generated))
                    self.counts.update(number, row, column, *seen)
                    continue
                tried = self.attacked(edited, kind, target, seeds, originals)
                for seed, original, one, candidates in zip(seeds, originals, generated, tried, strict=True):
                    before, after = self.sees(target, [one]), self.sees(target, candidates)
                    self.show(number, target, (column, seed), (original, one, candidates), after)
                    if kind in IN_TURN:
                        self.counts.turn(number, row, column, after)
                    self.counts.update(number, row, column, before, after.any(0, keepdim=True))

    def generate(self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """An image per prompt and seed."""
        return generate(pipeline, prompts, seeds, self.steps, self.guidance, len(prompts))

    def attacked(
        self, edited: Pipeline, kind: str, target: str, seeds: Sequence[int], originals: Sequence[Image.Image]
    ) -> list[list[Image.Image]]:
        """The candidates of some trials of an attack, each with a random stream and an original's image of its own."""
        data, trials = self.data, []
        others = [name for name in data.names if name not in data.targets]
        for seed, original in zip(seeds, originals, strict=True):
            random = stream(self.seed, target, "attack", *([] if kind == "free_tokens" else [kind]), seed)
            latents = image_latents(edited, [original])
            made = (self.original, edited, target, data.template, others, latents, seed, random)
            trials.append(Trial(*made, self.steps, self.guidance, self.strengths))
        together = SIDE_BY_SIDE.get(kind)
        return together(trials) if together else [ATTACKS[kind](trial) for trial in trials]

    def sees(self, target: str, images: Sequence[Image.Image]) -> Tensor:
        """[N, J] whether a judge takes an image for the target."""
        index = self.data.names.index(target)
        seen: Tensor = self.judges(images, self.clip.image(images), 0, [index] * len(images))["seen"] == index
        return seen

    def show(self, number: int, target: str, cell: tuple[int, int], images: Sequence[Any], seen: Tensor) -> None:
        """Save what the page shows of a trial: the original's, the edit's, and the candidate that most judges see."""
        original, generated, candidates = images
        name = list(self.edits)[number]
        self.gallery.save(ORIGINAL, target, cell, original)
        self.gallery.save(f"{name} before", target, cell, generated)
        self.gallery.save(f"{name} after", target, cell, candidates[int(seen.sum(1).argmax())])

    def on_test_epoch_end(self) -> None:
        """Take the pipelines off the device, add up the ranks' counts, print the table, write figures and page."""
        self.placed.leave()
        counts = self.counts.compute()
        names = (list(self.edits), self.data.targets, self.data.kinds, self.labels)
        self.results = figures(counts, *names, self.strengths.finetune)
        if self.trainer.is_global_zero:
            self.write()

    def write(self) -> None:
        """The figures as JSON, as a table in Markdown and on the screen, and a page with images."""
        data = self.data
        facts = {"names": data.names, "prompts": data.prompts, "seeds": data.seeds, "trials": data.trials}
        settings = self.settings | {"classifier": place_name(self.judge_folder)} | facts
        write_json(self.output, {"settings": settings, "success": self.results})
        markdown, page, rows = (
            self.output.with_suffix(".md"),
            self.output.with_suffix(".html"),
            result_rows(self.results),
        )
        markdown.write_text(markdown_table(COLUMNS, rows) + "\n", encoding="utf-8")
        attacks = [kind for kind in data.kinds if kind in ATTACKS]
        html = attack_page(
            rows, settings, self.gallery, list(self.edits), data.targets, data.kinds, attacks, data.trials
        )
        with written_aside(page) as aside:
            aside.write_text(html, encoding="utf-8")
        shutil.rmtree(self.gallery.folder, ignore_errors=True)
        table = Table(title="How often the target is seen")
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console = screen()
        console.print(table)
        console.print(f"Written to {self.output}, {markdown} and {page}", highlight=False)


def warn_of_unerased(edits: Iterable[str], targets: Sequence[str]) -> None:
    """Say which targets a run does not erase: that they are seen is no success of an attack."""
    for edit in edits:
        if Run.edit_in(resolve(edit)) is not None:
            erased = Run.load(edit, "model.edited").targets
            others = [target for target in targets if target not in erased]
            if others:
                rank_zero_warn(
                    f"data.targets: {', '.join(others)}: {edit} does not erase that, but {', '.join(erased)}.",
                    category=Advice,
                )
