"""Images of an edit and what both judges see in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from compared import Targets, Vocabulary
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mace_pl.data.levels import asked_prompts
from mace_pl.evaluation.clip import ClipEncoder, clip_score
from mace_pl.evaluation.convolutional import ConvolutionalJudge
from mace_pl.evaluation.erasure_scores import accuracies
from mace_pl.evaluation.judges import CLIP, Judges, judge_labels
from mace_pl.evaluation.report_images import ORIGINAL, Gallery, first_cells
from mace_pl.evaluation.results import Measured
from mace_pl.evaluation.run_scores import is_right
from mace_pl.evaluation.shares import FAILS
from mace_pl.evaluation.words import Words, neighbours
from mace_pl.files.artifacts import written_aside
from mace_pl.methods.metrics import ImageScores
from mace_pl.models.sampling import generate

CHOICE, REPORT = 1000, 2000  # first seeds of the images that choose settings, and of those that are reported
BATCH, GPU_BATCH = 20, 200  # images at once; each has its own random numbers, so that batches do not change them
SHOWN = 2  # images of a word on the page
Tables = dict[str, Tensor]


class Images:
    """Generates what a vocabulary asks for, and judges it.

    Args:
        pipeline: with whatever edit it has; judges work on its device.
        vocabulary: what is asked for.
        judge: weights of the convolutional judge, whose scores are reported; None for CLIP alone.
        clip: folder of the CLIP that chooses settings.
        folder: where images for the page and the original's tables lie.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
    """

    def __init__(
        self,
        pipeline: Any,
        vocabulary: Vocabulary,
        judge: str | None,
        clip: str,
        folder: Path,
        steps: int,
        guidance: float,
    ) -> None:
        self.pipeline, self.vocabulary, self.steps, self.guidance = pipeline, vocabulary, steps, guidance
        self.batch = BATCH if pipeline.device.type == "cpu" else GPU_BATCH
        names, synonyms = list(vocabulary.names), {n: list(words) for n, words in vocabulary.synonyms.items()}
        self.words = Words(names, synonyms, list(vocabulary.others), synonyms)
        self.clip = ClipEncoder(clip).to(pipeline.device)
        given: list[Any] = [CLIP] if judge is None else [ConvolutionalJudge(judge, vocabulary.judged), CLIP]
        self.labels = judge_labels(given)
        self.judges = Judges(given, self.clip, self.words, vocabulary.templates, strict=True).to(pipeline.device)
        asked = asked_prompts(names, vocabulary.sentences, vocabulary.descriptions)
        self.asked = asked if vocabulary.level_seeds else []
        cells = first_cells(len(vocabulary.templates), vocabulary.seeds, SHOWN)
        self.folder, self.gallery = folder, Gallery(folder / "images", cells, REPORT)

    def words_of(self, targets: Targets) -> list[str]:
        """Every name, and the targets' synonyms."""
        erased = [concept["target"] for concept in targets.concepts]
        return self.words.names + [word for name in erased for word in self.words.synonyms.get(name, [])]

    def generated(self, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        """An image of each prompt, by whatever edit the pipeline has."""
        return generate(self.pipeline, prompts, seeds, self.steps, self.guidance, self.batch)

    def table(self, words: int, templates: int, seeds: int) -> ImageScores:
        """An empty table, on the pipeline's device."""
        table = ImageScores(words, templates, seeds, None, len(self.labels))
        return table.to(self.pipeline.device)

    def named(self, words: Sequence[str], seeds: int, first: int, model: str | None = None) -> Tables:
        """The tables of words in every template; images of a ``model`` are kept for the page."""
        templates = self.vocabulary.templates
        table = self.table(len(self.words.all), len(templates), seeds)
        for at, template in enumerate(templates):
            rows = [(self.words.all.index(word), seed) for word in words for seed in range(seeds)]
            for part in (rows[i : i + self.batch] for i in range(0, len(rows), self.batch)):
                prompts = [template.replace("{}", self.words.all[place]) for place, _ in part]
                images = self.generated(prompts, [first + s for _, s in part])
                embedded = self.clip.image(images)
                score = clip_score(embedded, self.clip.text(prompts))
                seen = self.judges(images, embedded, at, [place for place, _ in part])
                table.update(torch.tensor([(p, at, s) for p, s in part]), **seen, clip_score=score)
                for (place, seed), image in zip(part, images, strict=True):
                    if model is not None:
                        self.gallery.save(model, self.words.all[place], (at, seed), image)
        return dict(table.compute())

    def levels(self, names: Sequence[str]) -> Tables:
        """The tables of prompts of levels that are about ``names``."""
        seeds = self.vocabulary.level_seeds
        table = self.table(len(self.asked), 1, seeds)
        places = [place for place, one in enumerate(self.asked) if one.name in names]
        rows = [(place, seed) for place in places for seed in range(seeds)]
        for part in (rows[i : i + self.batch] for i in range(0, len(rows), self.batch)):
            asked = [self.asked[place] for place, _ in part]
            images = self.generated([one.prompt for one in asked], [REPORT + seed for _, seed in part])
            embedded = self.clip.image(images)
            seen = self.judges(images, embedded, 0, [self.words.all.index(one.name) for one in asked])
            score = clip_score(embedded, self.clip.text([one.rest for one in asked]))
            table.update(torch.tensor([(place, 0, seed) for place, seed in part]), **seen, clip_score=score)
        return dict(table.compute())

    def reported(self, words: Sequence[str], model: str, of_levels: Sequence[str]) -> Tables:
        """All tables of a model, those of levels, about some names, with ``levels.`` before their names."""
        found = self.named(words, self.vocabulary.seeds, REPORT, model)
        return found | ({f"levels.{k}": table for k, table in self.levels(of_levels).items()} if self.asked else {})

    def edited(self, targets: Targets, model: str) -> Tables:
        """The tables of an edit; levels ask for its targets and the preserved names next to them."""
        erased = [concept["target"] for concept in targets.concepts]
        return self.reported(self.words_of(targets), model, [*erased, *self.near(erased)])

    def original(self) -> Tables:
        """The original's tables: made once, then read."""
        file = self.folder / "original.safetensors"
        if not file.is_file():
            tables = self.reported(self.words.all, ORIGINAL, self.words.names)
            with written_aside(file) as aside:
                save_file({key: table.contiguous() for key, table in tables.items()}, aside)
        found: Tables = load_file(file)
        return found

    def right(self, tables: Tables, judge: int) -> float:
        """The share of the images of names that a judge sees rightly."""
        count = len(self.words.names)
        there = tables["generated"][:count] > 0
        return float(is_right(tables["seen"][..., judge], self.words.right())[:count][there].double().mean())

    def results(self, targets: Targets, before: Tables, after: Tables) -> dict[str, Any]:
        """What each judge found of an edit, by its label."""
        both = {ORIGINAL: before, "edit": after}
        main, levels = self.parted(both)
        measured = Measured(self.words, main, self.asked, levels, self.labels)
        anchors = {concept["target"]: concept["anchor"] or None for concept in targets.concepts}
        near = self.near(list(anchors))
        return {label: measured.results("edit", i, anchors, near) for i, label in enumerate(self.labels)}

    @staticmethod
    def parted(both: Mapping[str, Tables]) -> tuple[dict[str, Tables], dict[str, Tables]]:
        """Tables of words and tables of levels, by model."""
        main = {m: {k: t for k, t in own.items() if not k.startswith("levels.")} for m, own in both.items()}
        levels = {
            m: {k.removeprefix("levels."): t for k, t in own.items() if k.startswith("levels.")}
            for m, own in both.items()
        }
        return main, levels

    def near(self, targets: list[str]) -> list[str]:
        """The preserved names next to the targets."""
        preserved = [name for name in self.words.names if name not in targets]
        found = neighbours(
            targets, preserved, self.clip.text(targets), self.clip.text(preserved), self.clip.tokenizer, 3
        )
        return sorted({word for sorts in found.values() for words in sorts.values() for word in words})

    def score(self, targets: Targets) -> dict[str, float]:
        """Acc_e, Acc_s and H_c of the edit that the pipeline has, by CLIP, on the seeds that choose; and ``score``.

        That is the mean of the H_c of what is seen and of the H_c of probabilities, which also tells apart edits that
        all leave the target; less 1 where more images of targets are empty than an erasure may have.
        """
        erased = [concept["target"] for concept in targets.concepts]
        tables = self.named(self.words.names, self.vocabulary.trial_seeds, CHOICE)
        groups, judge = self.words.groups(erased, []), self.labels.index(CLIP)
        right = is_right(tables["seen"][..., judge], self.words.right()).double()
        top, soft = (accuracies(t.mean((1, 2))[None], groups) for t in (right, tables["probability"][..., judge]))
        empty = float(tables["empty"][[self.words.all.index(name) for name in erased]].double().mean())
        scores = {name: float(top[name]) for name in ("acc_e", "acc_s", "h_c")}
        return scores | {"empty": empty, "score": (scores["h_c"] + float(soft["h_c"])) / 2 - float(empty > FAILS)}
