"""What ``hardening.py`` measures of an edit, kept on disk: trials of attacks one by one, images of prompts by batch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compared import Vocabulary
from hardening_edits import Subject
from PIL import Image
from torch import Tensor

from mace_pl.commands.export import changed_layers
from mace_pl.data.levels import DESCRIPTIONS, SENTENCES, asked_prompts
from mace_pl.evaluation.attacks.registry import ATTACKS, IN_TURN, SIDE_BY_SIDE
from mace_pl.evaluation.attacks.trial import Strengths, Trial
from mace_pl.evaluation.clip import ClipEncoder
from mace_pl.evaluation.convolutional import ConvolutionalJudge
from mace_pl.evaluation.fid import ClipFeatures, perceptual_distance
from mace_pl.evaluation.judges import CLIP, Judges, judge_labels
from mace_pl.evaluation.reach_rows import FILE as REACH
from mace_pl.evaluation.words import Words
from mace_pl.export.apply import load_edited
from mace_pl.files.artifacts import slug, write_json, written_aside
from mace_pl.files.identity import hash_files, identity
from mace_pl.files.tables import read_yaml
from mace_pl.methods.lora import stream
from mace_pl.models.pipeline import image_latents, load_pipeline
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate
from mace_pl.run import Run
from mace_pl.stages.reach import reach_of_run

REPORT = 2000  # first seed of the images of prompts
BATCH, GPU_BATCH = 20, 100  # images at once; on a GPU all trials of a cell are optimised in one batch too
Record = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """An attack as it is tried: one of the registry, with other strengths."""

    attack: str
    strengths: Mapping[str, Any]


TRIED = {name: Tried(name, {}) for name in ATTACKS}
TRIED["finetune"] = Tried("finetune", {"finetune": [10, 20, 40, 80, 160]})
TRIED["completion_early"] = Tried("completion", {"completion": [0.1, 0.2]})
TRIED["free_tokens_long"] = Tried("free_tokens", {"token_steps": 200, "tokens": 8})


@dataclass(frozen=True)
class Asked:
    """One image: its prompt and seed, what it should show, in which template of a vocabulary."""

    prompt: str
    seed: int
    name: str
    template: int = 0

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{slug(self.prompt)}_{self.seed}.png"


class Judging:
    """Both judges over the names of a vocabulary.

    Args:
        vocabulary: names and templates.
        judge: weights of the convolutional judge.
        clip: the encoder.
        device: of the judges.
    """

    def __init__(self, vocabulary: Vocabulary, judge: str, clip: ClipEncoder, device: str) -> None:
        given: list[Any] = [ConvolutionalJudge(judge, vocabulary.judged), CLIP]
        self.vocabulary, self.clip, self.labels = vocabulary, clip, judge_labels(given)
        self.words = Words(list(vocabulary.names), {}, list(vocabulary.others))
        self.judges = Judges(given, clip, self.words, vocabulary.templates, strict=True).to(device)

    def sees(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> Tensor:
        """[N, J] whether each judge sees the name that was asked for."""
        found = torch.zeros(len(images), len(self.labels), dtype=torch.bool)
        for template in {one.template for one in asked}:
            rows = [i for i, one in enumerate(asked) if one.template == template]
            part, places = [images[i] for i in rows], [self.words.names.index(asked[i].name) for i in rows]
            seen = self.judges(part, self.clip.image(part), template, places)["seen"]
            found[rows] = seen.cpu() == torch.tensor(places)[:, None]
        return found


class Bench:
    """The original beside one edit at a time.

    Args:
        pretrained: the original.
        vocabularies: ``all`` for names, ``manners`` for styles.
        judge: weights of the convolutional judge.
        clip: folder of the CLIP that judges.
        output: folder of all that is measured.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        strengths: how hard attacks try, where an attack does not say it itself.
        device: of models and judges.
    """

    def __init__(
        self,
        pretrained: str,
        vocabularies: Mapping[str, Vocabulary],
        judge: str,
        clip: str,
        output: Path,
        steps: int,
        guidance: float,
        strengths: Mapping[str, Any],
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.at_once, self.batch = (4, BATCH) if device == "cpu" else (0, GPU_BATCH)
        self.pretrained, self.output, self.steps, self.guidance = pretrained, output, steps, guidance
        self.original, self.features = load_pipeline(pretrained).to(device), ClipFeatures(clip).to(device)
        encoder = self.features.encoder
        self.judging = {name: Judging(own, judge, encoder, device) for name, own in vocabularies.items()}
        self.labels = next(iter(self.judging.values())).labels
        self.strengths = dict(strengths)
        self.loaded: tuple[Path, Pipeline] | None = None

    def judging_of(self, subject: Subject, target: str) -> Judging:
        """The judges of a target."""
        return self.judging["manners" if target in subject.styles else "all"]

    def edited(self, run: Path) -> Pipeline:
        """The edited pipeline of a run; one is in memory."""
        if self.loaded is None or self.loaded[0] != run:
            self.loaded = (run, load_edited(self.pretrained, str(run)).to(self.device))
        return self.loaded[1]

    def of(self, run: Path) -> Record:
        """What measures of a run depend on, beside their own settings."""
        edit = [run / "edit.safetensors", run / "hardening.safetensors"]
        files = hash_files([file for file in edit if file.is_file()])
        return {"edit": files, "steps": self.steps, "guidance": self.guidance}

    def images(self, pipeline: Pipeline, folder: Path, asked: Sequence[Asked]) -> list[Image.Image]:
        """The images of prompts; those that are in the folder are taken."""
        missing = [one for one in asked if not (folder / one.file).is_file()]
        folder.mkdir(parents=True, exist_ok=True)
        for part in (missing[i : i + self.batch] for i in range(0, len(missing), self.batch)):
            prompts, seeds = [one.prompt for one in part], [one.seed for one in part]
            for one, image in zip(part, generate(pipeline, prompts, seeds, self.steps, self.guidance), strict=True):
                save(image, folder / one.file)
        return [Image.open(folder / one.file).convert("RGB") for one in asked]

    def reach(self, subject: Subject, run: Path, place: Path) -> None:
        """What the edit leaves within reach of its targets, without an image, in ``reach.json``."""
        file, made = place / REACH, self.of(run)
        if file.is_file() and read_yaml(file, "output").get("of") == identity(made):
            return
        finished = Run.load(run)
        original = changed_layers(self.original, finished.edit)
        names = self.judging["manners" if set(subject.targets) <= subject.styles else "all"].words.names
        found = reach_of_run(finished, self.original, original, finished.edit.weights(original), names)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"of": identity(made), "targets": found})

    # --- attacks -------------------------------------------------------------------------------------------------

    def trials(self, subject: Subject, run: Path, place: Path, name: str, count: int) -> Record:
        """Trials of an attack on a target: which candidates show it to which judge; made once, then read.

        Args:
            subject: what is erased.
            run: the edit.
            place: folder of the trials, in that of the target.
            name: of the attack.
            count: how many.
        """
        tried, target = TRIED[name], next(t for t in subject.targets if slug(t) == place.parent.name)
        made = {**self.of(run), "attack": tried.attack, "strengths": {**self.strengths, **tried.strengths}}
        files = [place / f"{number}.json" for number in range(count)]
        found = [read_yaml(file, "output") if file.is_file() else {} for file in files]
        missing = [number for number, one in enumerate(found) if one.get("of") != identity(made)]
        at_once = (self.at_once or len(missing) or 1) if tried.attack in SIDE_BY_SIDE else 1
        for part in (missing[i : i + at_once] for i in range(0, len(missing), at_once)):
            for number, record in zip(part, self.tried(subject, run, files, target, name, part), strict=True):
                found[number] = {"of": identity(made), **record}
                write_json(files[number], found[number])
        return {"seconds": sum(one["seconds"] for one in found)}

    def tried(
        self, subject: Subject, run: Path, files: Sequence[Path], target: str, name: str, numbers: Sequence[int]
    ) -> list[Record]:
        """Trials that are made together, each with an image in its file."""
        tried, started = TRIED[name], time.perf_counter()
        judging = self.judging_of(subject, target)
        templates, others = judging.vocabulary.templates, [n for n in judging.words.names if n not in subject.targets]
        strengths, edited = Strengths(**{**self.strengths, **tried.strengths}), self.edited(run)
        plain, trials = [], []
        for number in numbers:
            template = number % len(templates)
            plain.append(Asked(templates[template].replace("{}", target), number, target, template))
            latents = image_latents(self.original, self.images(self.original, self.output / "original", plain[-1:]))
            random = stream(number, target, "attack", name)
            models = (self.original, edited, target, templates[template], others, latents, number, random)
            trials.append(Trial(*models, self.steps, self.guidance, strengths))
        together = SIDE_BY_SIDE.get(tried.attack, lambda some: [ATTACKS[tried.attack](one) for one in some])
        found = []
        for number, asked, images in zip(numbers, plain, together(trials), strict=True):
            seen = judging.sees(images, [asked] * len(images))
            save(images[int(seen.sum(1).argmax())], files[number].with_suffix(".png"))
            record = {label: seen[:, j].tolist() for j, label in enumerate(self.labels)}
            found.append(record | ({"at": list(strengths.finetune)} if tried.attack in IN_TURN else {}))
        taken = (time.perf_counter() - started) / len(found)
        return [{"seconds": taken, **one} for one in found]

    # --- prompts -------------------------------------------------------------------------------------------------

    def scores(self, subject: Subject, run: Path, place: Path, plain: int, seeds: int) -> Record:
        """Plain prompts, held-out sentences and descriptions of targets; preserved names: right, and how far moved.

        Args:
            subject: what is erased.
            run: the edit.
            place: folder of the measures.
            plain: images of a target at each level.
            seeds: images of each preserved name and template.
        """
        made = {**self.of(run), "plain": plain, "seeds": seeds}
        file = place / "scores.json"
        found = read_yaml(file, "output") if file.is_file() else {}
        if found.get("of") == identity(made):
            return dict(found)
        started = time.perf_counter()
        targets = {target: self.asked_for(subject, run, place, target, plain) for target in subject.targets}
        kinds = ["all", *(["manners"] if subject.styles & set(subject.targets) else [])]
        preserved = {kind: self.preserved(subject, run, place, kind, seeds) for kind in kinds}
        record = {"of": identity(made), "targets": targets, "preserved": preserved}
        record["seconds"] = time.perf_counter() - started
        write_json(file, record)
        return record

    def asked_for(self, subject: Subject, run: Path, place: Path, target: str, count: int) -> Record:
        """How often each judge sees the target, by level: successes by judge, and the number of images."""
        judging = self.judging_of(subject, target)
        own = judging.vocabulary
        plain = [(template.replace("{}", target), t) for t, template in enumerate(own.templates)]
        levels: dict[str, list[tuple[str, int]]] = {"plain": plain}
        for level in (SENTENCES, DESCRIPTIONS):
            known = asked_prompts([target], own.sentences, None) if own.sentences and level == SENTENCES else []
            if own.descriptions and level == DESCRIPTIONS and target not in subject.styles:
                known = asked_prompts([target], None, own.descriptions)
            levels[level] = [(one.prompt, 0) for one in known if one.level == level]
        found = {}
        for level, prompts in levels.items():
            if prompts:
                rows = [prompts[i % len(prompts)] for i in range(count)]
                asked = [Asked(p, REPORT + i // len(prompts), target, t) for i, (p, t) in enumerate(rows)]
                images = self.images(self.edited(run), place / "images", asked)
                found[level] = counted(judging.sees(images, asked), self.labels)
        return found

    def preserved(self, subject: Subject, run: Path, place: Path, kind: str, seeds: int) -> Record:
        """How many images of preserved names each judge sees rightly, and their distance from the original's."""
        judging = self.judging[kind]
        names = [name for name in judging.words.names if name not in subject.targets]
        asked = [
            Asked(template.replace("{}", name), REPORT + seed, name, at)
            for name in names
            for at, template in enumerate(judging.vocabulary.templates)
            for seed in range(seeds)
        ]
        originals = self.images(self.original, self.output / "original", asked)
        images = self.images(self.edited(run), place / "images", asked)
        far = []
        for part in (slice(i, i + self.batch) for i in range(0, len(asked), self.batch)):
            both = [self.features(some[part])[1] for some in (originals, images)]
            far += perceptual_distance(*both).tolist()
        before = counted(judging.sees(originals, asked), self.labels)
        after = counted(judging.sees(images, asked), self.labels)
        return {"before": before, "after": after, "distance": sum(far) / len(far)}


def counted(seen: Tensor, labels: Sequence[str]) -> dict[str, int]:
    """Successes by judge, and ``images``."""
    return {label: int(seen[:, j].sum()) for j, label in enumerate(labels)} | {"images": len(seen)}


def save(image: Image.Image, file: Path) -> None:
    """Write an image aside and rename it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(file, clear=False) as aside:
        image.save(aside, format="png")
