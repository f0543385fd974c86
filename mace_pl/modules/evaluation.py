"""Score edited models beside their original under ``test``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from PIL import Image
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.evaluation.ablation import read_ablation
from mace_pl.evaluation.clip import ClipEncoder, clip_score
from mace_pl.evaluation.compared import OriginalImages, WholePipelines, is_pipeline, read_edit, read_reference
from mace_pl.evaluation.fid import ClipFeatures, compare, perceptual_distance
from mace_pl.evaluation.report_images import ORIGINAL, Gallery, first_cells
from mace_pl.evaluation.run_scores import Words, generated_features, neighbours, original_results, run_results
from mace_pl.evaluation.write_scores import write_scores
from mace_pl.files.artifacts import claim_output
from mace_pl.files.paths import resolve
from mace_pl.images.files import read_images
from mace_pl.methods.metrics import ImageScores
from mace_pl.models.backbone import backbone_of
from mace_pl.models.base_model import base_hashes
from mace_pl.models.pipeline import load_pipeline, model_fingerprint, scheduled
from mace_pl.models.sampling import generate
from mace_pl.models.text_encoding import spelled_as
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
        targets: what the pipelines among ``runs`` erase; runs of ``fit`` bring their own.
        judge: what says which name an image shows, in place of the classifier, such as a face-identity model: a
            :class:`mace_pl.evaluation.clip.Judge`.
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
        targets: list[str] | None = None,
        judge: torch.nn.Module | None = None,
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
        claim_output(Path(output), overwrite, "model.output")
        if kid_subset < 2:
            raise UserError(f"model.kid_subset={kid_subset} must be at least 2.")
        self.ablation = read_ablation(ablation or [])
        self.pretrained, self.classifier, self.output = pretrained, classifier, Path(output)
        self.runs = {Path(run).name: run for run in runs or []}
        if len(self.runs) < len(runs or []) or ORIGINAL in self.runs:
            raise UserError(f"model.runs={runs} need folder names that differ, and none called {ORIGINAL!r}.")
        self.steps, self.guidance, self.scheduler = steps, guidance, scheduler
        self.kid_subset, self.nearest, self.shown = kid_subset, nearest, shown
        self.pipeline = load_pipeline(pretrained, revision, variant, layout)
        with scheduled(self.pipeline, scheduler, "model.scheduler"):  # refused here, before anything is generated
            self.unet = backbone_of(self.pipeline).network
        self.hashes = base_hashes(self.pipeline)  # runs of another base are refused
        self.fingerprints = {ORIGINAL: model_fingerprint(self.pipeline)}
        self.targets: dict[str, list[str]] = {}
        self.weights: dict[str, dict[str, Tensor]] = {ORIGINAL: {}}
        self.wholes = WholePipelines()
        for name, run in self.runs.items():
            self.read(name, resolve(run), targets)
        self.clip = ClipEncoder(classifier)
        self.features = ClipFeatures(classifier) if features is None else features
        self.judge: Any = judge
        self.reference = reference
        self.references = [] if reference is None else read_reference(reference)
        self.scores: dict[str, Any] = {}

    def read(self, name: str, folder: Path, targets: list[str] | None) -> None:
        """Take a run's weights and targets, or a whole pipeline.

        Raises:
            UserError: neither of both, one made from another model, or a pipeline without targets.
        """
        run = self.runs[name]
        if is_pipeline(run, folder):
            if not targets:
                raise UserError(f"model.targets is empty, and the pipeline {run} does not say what it erases.")
            self.fingerprints[name] = self.wholes.add(name, run)
            self.weights[name], self.targets[name] = {}, targets
            return
        original = self.unet.state_dict()
        self.weights[name], self.targets[name] = read_edit(folder, original, self.hashes)
        self.weights[ORIGINAL] |= {key: original[key].clone() for key in self.weights[name]}

    def setup(self, stage: str) -> None:
        """The texts of the classes in each template, and a table per model."""
        check_trainer(self.trainer, "test")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.targets = {run: spelled_as(self.pipeline, names, data.names) for run, names in self.targets.items()}
        erased = {t for targets in self.targets.values() for t in targets}
        synonyms = {t: words for t, words in data.synonyms.items() if t in erased or not self.runs}
        self.words = Words(data.names, synonyms)
        self.own = [data.names.index(self.words.meaning[word]) for word in self.words.all]
        if self.judge is not None:
            self.own_judge(data.names)
        texts = [self.clip.text([t.replace("{}", name) for name in data.names]) for t in data.templates]
        self.register_buffer("texts", torch.stack(texts), persistent=False)
        shape = (len(self.words.all), len(data.templates), data.seeds)
        width = int(self.features.num_features)  # type: ignore[arg-type]
        self.tables = torch.nn.ModuleList(ImageScores(*shape, width) for _ in self.weights)
        folder = self.output.with_name(f".{self.output.name}.images.partial")
        self.gallery = Gallery(folder, first_cells(len(data.templates), data.seeds, self.shown), data.first_seed)
        self.original_images = OriginalImages(folder / ".original")
        self.near = {name: self.next_to(targets) for name, targets in self.targets.items()}

    def own_judge(self, names: list[str]) -> None:
        """Find the data's names among those of the judge.

        Raises:
            UserError: it does not know one.
        """
        unknown = [name for name in names if name not in self.judge.names]
        if unknown:
            raise UserError(f"data.names: the judge does not know {', '.join(unknown)}. It knows {self.judge.names}.")
        self.columns = [self.judge.names.index(name) for name in names]
        self.places = torch.full((len(self.judge.names),), -1)
        self.places[self.columns] = torch.arange(len(names))

    def judged(self, images: list[Image.Image], embedded: Tensor, template: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen: [N] the class or −1, [N, C] probabilities, [N] bool where there is nothing to judge."""
        if self.judge is None:
            texts: Any = self.texts
            probabilities = self.clip.probabilities(embedded, texts[template])
            return probabilities.argmax(-1), probabilities, torch.zeros(len(images), dtype=torch.bool)
        chances = self.judge(images)
        undetected = chances.sum(-1) == 0
        seen = self.places.to(chances.device)[chances.argmax(-1)].masked_fill(undetected, -1)
        return seen, chances[:, self.columns], undetected

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
        return {*self.words.names, *(word for t in self.targets[name] for word in synonyms.get(t, []))}

    @property
    def passes(self) -> int:
        """How often the data are gone through: with the original and edits of it, then with each whole pipeline."""
        return 1 + len(self.wholes.names)

    def models(self, index: int) -> list[str]:
        """Those of a pass, the original first."""
        whole = self.wholes.names
        return [whole[index - 1]] if index else [name for name in self.weights if name not in whole]

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Generate the batch's rows with every model of the pass that needs them, and measure each image."""
        known = [i for i, word in enumerate(batch["word"]) if word in self.words.all]  # no synonyms of preserved names
        columns = {key: [batch[key][i] for i in known] for key in ("prompt", "seed", "word")}
        places = [self.words.all.index(word) for word in columns["word"]]
        batch = {**columns, "template": batch["template"], "place": places}
        if not known:
            return
        if dataloader_idx:
            self.pipeline.to("cpu")  # the device is that of the whole pipeline now
        originals = list(self.features(self.original_images.read(batch))[1]) if dataloader_idx else []
        tables = dict(zip(self.weights, self.tables, strict=True))
        for name in self.models(dataloader_idx):
            words = self.words_of(name)
            rows = [i for i, word in enumerate(batch["word"]) if word in words]
            if not rows:
                continue
            images = self.generate(name, [batch["prompt"][i] for i in rows], [batch["seed"][i] for i in rows])
            if name == ORIGINAL and self.wholes.names:
                self.original_images.write(batch, images)
            layers = self.measure(tables[name], name, batch, rows, images, originals)
            originals = originals or layers  # the original comes first, and generates all rows

    def generate(self, name: str, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        """Images by one of the models."""
        pipeline = self.wholes.load(name) if name in self.wholes.names else self.pipeline
        pipeline.to(self.device)
        if pipeline is self.pipeline:
            self.unet.load_state_dict(self.weights[ORIGINAL] | self.weights[name], strict=False)
        first: int = self.trainer.datamodule.first_seed  # type: ignore[attr-defined]
        with scheduled(pipeline, self.scheduler, "model.scheduler"):
            return generate(
                pipeline, prompts, [first + seed for seed in seeds], self.steps, self.guidance, len(prompts)
            )

    def measure(
        self,
        table: Any,
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
        seen, probabilities, undetected = self.judged(images, embedded, template)
        truth = torch.tensor([self.own[index] for index in places], device=self.device)
        prompts = self.clip.text([batch["prompt"][i] for i in rows])
        features, layers = self.features(images)
        there = [layer[rows] for layer in originals] or layers
        table.update(
            torch.tensor(cells, device=self.device),
            seen,
            undetected,
            probabilities.gather(1, truth.unsqueeze(1))[:, 0],
            clip_score(embedded, prompts),
            perceptual_distance(there, layers),
            features,
        )
        for (index, *cell), image in zip(cells, images, strict=True):
            self.gallery.save(name, self.words.all[index], (cell[0], cell[1]), image)
        return list(layers)

    def on_test_epoch_end(self) -> None:
        """Put the ranks' tables together, print and write the figures."""
        self.wholes.drop()
        results = [table.compute() for table in self.tables]  # type: ignore[operator]
        if not self.trainer.is_global_zero:
            return
        tables = dict(zip(self.weights, results, strict=True))
        self.scores = {ORIGINAL: original_results(tables[ORIGINAL], self.words)}
        for name, targets in self.targets.items():
            near = sorted({word for result in self.near[name].values() for sort in result.values() for word in sort})
            result = run_results(tables[ORIGINAL], tables[name], self.words, targets, near)
            self.scores[name] = result | {"nearest": self.near[name]}
        self.add_quality(tables)
        write_scores(self)

    def add_quality(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        """FID, KID and mean distance of each run over its preserved names, against the reference or the original."""
        names = self.words.names
        reference = None
        if self.references:
            batches = [self.references[i : i + 50] for i in range(0, len(self.references), 50)]
            parts = [self.features(read_images(batch, "model.reference"))[0].cpu() for batch in batches]
            reference = torch.cat(parts)
            originals = generated_features(tables[ORIGINAL], list(range(len(names))))
            self.scores[ORIGINAL]["quality"] = compare(reference, originals, self.kid_subset)
        for name, targets in self.targets.items():
            preserved = [i for i, word in enumerate(names) if word not in targets]
            before, after = (generated_features(tables[model], preserved) for model in (ORIGINAL, name))
            quality = compare(before if reference is None else reference, after, self.kid_subset)
            distances = tables[name]["distance"][preserved][tables[name]["generated"][preserved] > 0]
            quality["distance"] = float(distances.mean()) if len(distances) else None
            self.scores[name]["quality"] = quality
