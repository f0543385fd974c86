"""Score edited models beside their original under ``test``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from PIL import Image
from torch import Tensor

from mace_pl.concepts.concept import read_names
from mace_pl.data.evaluation_prompts import EvaluationPrompts
from mace_pl.errors import UserError
from mace_pl.evaluation.ablation import read_ablation
from mace_pl.evaluation.clip import ClipEncoder, clip_score
from mace_pl.evaluation.compared import OriginalImages, ScoredModels, read_reference
from mace_pl.evaluation.fid import ClipFeatures, compare, perceptual_distance
from mace_pl.evaluation.judges import CLIP, Judges, judge_labels
from mace_pl.evaluation.quality import generated_features, reference_features, run_quality
from mace_pl.evaluation.reach_rows import read_reach
from mace_pl.evaluation.report_images import ORIGINAL, Gallery, first_cells
from mace_pl.evaluation.results import Measured, all_results
from mace_pl.evaluation.words import Words, neighbours
from mace_pl.evaluation.write_scores import claim_scores, settings_of, write_scores
from mace_pl.files.owned import refuse_files
from mace_pl.files.paths import resolve
from mace_pl.files.versions import current
from mace_pl.methods.metrics import ImageScores
from mace_pl.models.pipeline import load_pipeline, scheduled
from mace_pl.models.sampling import generate
from mace_pl.training.options import check_trainer


class ErasureScores(LightningModule):
    """Acc_e, Acc_s, Acc_g, H_o, CLIP score, FID and KID of edits, each beside the original with the same seeds.

    The original's images are generated once for all runs; a run generates the names and its targets' synonyms.
    Whole pipelines come one after another, each in a pass of its own over the data, so that one of them is in memory.

    Args:
        pretrained: the original pipeline: folder, hub id or single checkpoint.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder with the configurations of a single checkpoint's parts.
        runs: output folders of ``fit``, each with its targets and its ``refined.safetensors``, or folders of whole
            pipelines, by whatever method they were edited. None scores the original alone.
        classifier: folder of the CLIPModel that judges.
        output: the JSON file with all figures; a table in Markdown and a report in HTML are written beside it.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        overwrite: replace ``output`` where it exists.
        targets: what the pipelines among ``runs`` erase, perhaps each with its anchor; runs of ``fit`` bring their own.
        names: what judges choose among: a list, or a text file with one on each line; those of the data when None. With
            names an image that shows nothing counts as none of them.
        judge: what says which name an image shows, in place of the classifier, such as a face-identity model: a
            :class:`mace_pl.evaluation.clip.Judge`; or several, where ``clip`` is the classifier. The first one's scores
            come first.
        chosen_by: the judge by which settings of the runs were chosen, as the tables name it.
        features: what FID, KID and the distance see of an image; the classifier's image side when None.
        reference: folder of images for FID and KID; those of the original model when None.
        kid_subset: images in each of KID's subsets.
        nearest: how many preserved names beside each target are scored on their own.
        shown: images of each word in the report.
        ablation: JSON files whose rows become a section of the report: lists of ``label``, ``acc_e``, ``acc_s`` and
            ``h``, or score files of ``test``, a row per run.
        scheduler: a scheduler of diffusers that generates with all models; each model's own when None.
    """

    def __init__(
        self,
        pretrained: str,
        runs: list[str] | None = None,
        classifier: str = "checkpoints/emoji/clip",
        output: str = "checkpoints/scores.json",
        steps: int = 30,
        guidance: float = 5.0,
        overwrite: bool = False,
        targets: list[str] | dict[str, str] | None = None,
        names: list[str] | str | None = None,
        judge: torch.nn.Module | list[Literal["clip"] | torch.nn.Module] | None = None,
        chosen_by: str | None = None,
        features: torch.nn.Module | None = None,
        reference: str | None = None,
        kid_subset: int = 50,
        nearest: int = 3,
        shown: int = 4,
        ablation: list[str] | None = None,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
        scheduler: str | None = None,
    ) -> None:
        super().__init__()
        claim_scores(Path(output), overwrite, pretrained)
        if kid_subset < 2:
            raise UserError(f"model.kid_subset={kid_subset} must be at least 2.")
        self.ablation = read_ablation(ablation or [])
        self.pretrained, self.classifier, self.output = pretrained, classifier, Path(output)
        self.runs = {Path(run).name: run for run in runs or []}
        if len(self.runs) < len(runs or []) or ORIGINAL in self.runs:
            raise UserError(f"model.runs={runs} need folder names that differ, and none called {ORIGINAL!r}.")
        self.steps, self.guidance, self.scheduler = steps, guidance, scheduler
        self.kid_subset, self.nearest, self.shown = kid_subset, nearest, shown
        self.read = [("model.names", names), *(("model.ablation", file) for file in ablation or [])]
        self.names = None if names is None else read_names(names, "model.names")
        self.given_judges = judge if isinstance(judge, list) else [CLIP if judge is None else judge]
        self.labels, self.chosen_by = judge_labels(self.given_judges), chosen_by
        if not self.labels:
            raise UserError("model.judge is empty. Name at least one judge, as in [clip], or leave the setting out.")
        if chosen_by is not None and chosen_by not in self.labels:
            raise UserError(f"model.chosen_by={chosen_by} is none of the judges {self.labels}. Name one of them.")
        self.pipeline = load_pipeline(pretrained, revision, variant, layout)
        with scheduled(self.pipeline, scheduler, "model.scheduler"):  # refused here, before anything is generated
            self.models = ScoredModels(self.pipeline, self.runs, targets)
        self.unet = self.models.unet
        self.clip = ClipEncoder(classifier)
        self.features = ClipFeatures(classifier) if features is None else features
        self.reference = reference
        self.references = [] if reference is None else read_reference(reference)
        folder = self.output.with_name(f".{self.output.name}.images.partial")
        self.original_images = OriginalImages(folder / ".original")
        self.gallery = Gallery(folder, [])
        self.words = Words([], {})  # this and the next: of the data's names, made by setup
        self.judges = Judges([], self.clip, self.words, [], strict=False)
        self.tables, self.asked_tables = torch.nn.ModuleList(), torch.nn.ModuleList()
        self.near: dict[str, dict[str, dict[str, list[str]]]] = {}
        self.scores: dict[str, Any] = {}

    @property
    def data(self) -> EvaluationPrompts:
        """The names, their prompts and seeds."""
        return self.trainer.datamodule  # type: ignore[attr-defined,no-any-return]

    def setup(self, stage: str) -> None:
        """The classes of the judges, and tables per model."""
        check_trainer(self.trainer, "test")
        data = self.data
        read = [*self.read, ("data.names", data.names_file)]
        read += [(f"data.{name}", file) for name, file in data.files.items()]
        outputs = [self.output, self.output.with_suffix(".md"), self.output.with_suffix(".html")]
        refuse_files(outputs, read, "model.output")
        others = [name for name in self.names or [] if name not in data.names]
        self.models.spell([*data.names, *others])
        erased = {t for targets in self.models.targets.values() for t in targets}
        synonyms = {t: words for t, words in data.synonyms.items() if t in erased or not self.runs}
        self.words = Words(data.names, synonyms, others, data.synonyms)
        strict = self.names is not None
        self.judges = Judges(self.given_judges, self.clip, self.words, data.templates, strict)
        shape = (len(self.words.all), len(data.templates), data.seeds)
        width, judges = int(self.features.num_features), len(self.labels)  # type: ignore[arg-type]
        self.tables = torch.nn.ModuleList(ImageScores(*shape, width, judges) for _ in self.models.weights)
        asked, count = (len(data.asked), 1, data.level_seeds), len(self.models.weights) if data.asked else 0
        self.asked_tables = torch.nn.ModuleList(ImageScores(*asked, None, judges) for _ in range(count))
        self.gallery = Gallery(
            self.gallery.folder, first_cells(len(data.templates), data.seeds, self.shown), data.first_seed
        )
        self.near = {name: self.next_to(targets) for name, targets in self.models.targets.items()}

    def next_to(self, targets: list[str]) -> dict[str, dict[str, list[str]]]:
        """The preserved names next to each target, by the texts of the classifier."""
        preserved = [name for name in self.words.names if name not in targets]
        if not preserved:
            return {}
        first, second = self.clip.text(targets), self.clip.text(preserved)
        return neighbours(targets, preserved, first, second, self.clip.tokenizer, self.nearest)

    def words_of(self, name: str) -> set[str]:
        """The words whose images a model generates."""
        if name == ORIGINAL:
            return set(self.words.all)
        synonyms = self.words.synonyms
        return {*self.words.names, *(word for t in self.models.anchors[name] for word in synonyms.get(t, []))}

    @property
    def passes(self) -> int:
        """How often the data are gone through."""
        return self.models.passes

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Generate the batch's rows with every model of the pass that needs them, and measure each image."""
        if "asked" in batch:
            self.step_of_levels(batch, dataloader_idx)
            return
        known = [i for i, word in enumerate(batch["word"]) if word in self.words.all]  # no synonyms of preserved names
        columns = {key: [batch[key][i] for i in known] for key in ("prompt", "seed", "word")}
        places = [self.words.all.index(word) for word in columns["word"]]
        batch = {**columns, "template": batch["template"], "place": places}
        if not known:
            return
        originals = list(self.features(self.original_images.read(batch))[1]) if dataloader_idx else []
        tables: dict[str, Any] = dict(zip(self.models.weights, self.tables, strict=True))
        for name in self.models.of_pass(dataloader_idx):
            words = self.words_of(name)
            rows = [i for i, word in enumerate(batch["word"]) if word in words]
            if not rows:
                continue
            images = self.generate(name, [batch["prompt"][i] for i in rows], [batch["seed"][i] for i in rows])
            if name == ORIGINAL and self.models.wholes.names:
                self.original_images.write(batch, images)
            layers = self.measure(tables[name], name, batch, rows, images, originals)
            originals = originals or layers  # the original comes first, and generates all rows

    def step_of_levels(self, batch: Mapping[str, Any], index: int) -> None:
        """Generate prompts of levels with every model of a pass."""
        asked = [self.data.asked[place] for place in batch["asked"]]
        places = [self.words.all.index(one.name) for one in asked]
        cells = torch.tensor([(i, 0, seed) for i, seed in zip(batch["asked"], batch["seed"], strict=True)])
        rests = self.clip.text([one.rest for one in asked])
        tables: dict[str, Any] = dict(zip(self.models.weights, self.asked_tables, strict=True))
        for name in self.models.of_pass(index):
            images = self.generate(name, batch["prompt"], batch["seed"])
            embedded = self.clip.image(images)
            seen = self.judges(images, embedded, 0, places)
            tables[name].update(cells.to(self.device), **seen, clip_score=clip_score(embedded, rests))

    def generate(self, name: str, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Images by one of the models."""
        pipeline = self.models.take(name, self.device)
        first = self.data.first_seed
        with scheduled(pipeline, self.scheduler, "model.scheduler"):
            return generate(
                pipeline, prompts, [first + seed for seed in seeds], self.steps, self.guidance, len(prompts)
            )

    def measure(
        self,
        table: ImageScores,
        name: str,
        batch: Mapping[str, Any],
        rows: list[int],
        images: list[Image.Image],
        originals: list[Tensor],
    ) -> list[Tensor]:
        """Enter a model's images of some rows of the batch into its table; returns their features by layer."""
        template = batch["template"]
        places = [batch["place"][i] for i in rows]
        cells = [(index, template, batch["seed"][i]) for index, i in zip(places, rows, strict=True)]
        embedded = self.clip.image(images)
        features, layers = self.features(images)
        there = [layer[rows] for layer in originals] or layers
        table.update(
            torch.tensor(cells, device=self.device),
            **self.judges(images, embedded, template, places),
            clip_score=clip_score(embedded, self.clip.text([batch["prompt"][i] for i in rows])),
            distance=perceptual_distance(there, layers),
            features=features,
        )
        for (index, *cell), image in zip(cells, images, strict=True):
            self.gallery.save(name, self.words.all[index], (cell[0], cell[1]), image)
        return list(layers)

    def on_test_epoch_end(self) -> None:
        """Put the ranks' tables together, print and write the figures."""
        self.models.leave()
        main, levels = ([table.compute() for table in each] for each in (self.tables, self.asked_tables))  # type: ignore[operator]
        if not self.trainer.is_global_zero:
            return
        tables, of_levels = (dict(zip(self.models.weights, each, strict=False)) for each in (main, levels))
        measured = Measured(self.words, tables, self.data.asked, of_levels, self.labels)
        self.scores = all_results(measured, self.models.anchors, self.near)
        self.add_quality(tables)
        more: dict[str, Any] = {"ablation": self.ablation} if self.ablation else {}
        found = {name: read_reach(current(resolve(run)) / "report") for name, run in self.runs.items()}
        more |= {"reach": {name: own for name, own in found.items() if own}}
        content = {"settings": settings_of(self, self.data), "scores": self.scores} | more
        write_scores(self.output, content, self.gallery, self.loggers)

    def add_quality(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        """FID, KID and mean distance of each run over its preserved names, against the reference or the original."""
        names = self.words.names
        reference = reference_features(self.references, self.features)
        if reference is not None:
            originals = generated_features(tables[ORIGINAL], list(range(len(names))))
            self.scores[ORIGINAL]["quality"] = compare(reference, originals, self.kid_subset)
        for name, anchors in self.models.anchors.items():
            preserved = [i for i, word in enumerate(names) if word not in anchors]
            quality = run_quality(tables[ORIGINAL], tables[name], preserved, reference, self.kid_subset)
            self.scores[name]["quality"] = quality
