"""Harden a finished run: train a LoRA on all attention against free tokens that bring its targets back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from mace_pl.commands.export import changed_layers
from mace_pl.concepts.concept import AUTO, Concept, read_names, templates_of
from mace_pl.concepts.names import clean_name, clean_names
from mace_pl.concepts.vocabulary import STYLES_FILE, common_words, own_names
from mace_pl.concepts.wording import asks_for, holding
from mace_pl.errors import Advice, UserError
from mace_pl.evaluation.reach_rows import FILE as REACH
from mace_pl.evaluation.reach_rows import add_to_summary as add_reach
from mace_pl.export.formats import Finished, check_formats
from mace_pl.export.single_file import check_single_file
from mace_pl.files.artifacts import claim_output, write_json
from mace_pl.files.identity import hash_files
from mace_pl.files.links import take
from mace_pl.files.markdown import SUMMARY
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.screen import screen
from mace_pl.hardening.adapter import check_rank
from mace_pl.hardening.harden import Hardened
from mace_pl.hardening.job import Job
from mace_pl.hardening.originals import Look
from mace_pl.hardening.pictures import FILE as IMAGE
from mace_pl.hardening.pictures import compared
from mace_pl.hardening.report import add_to_summary, report_of, show
from mace_pl.hardening.saved import Saved
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.wording import Wording, wording_of
from mace_pl.methods.hardening import REPORT
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source
from mace_pl.models.text_encoding import check_free_tokens, names_beside
from mace_pl.run import Run
from mace_pl.stages.reach import reach_of_run
from mace_pl.training.progress import said_by_tenths
from mace_pl.training.team import launched

Texts = dict[str, list[str]]


def harden_run(
    run: str,
    output_dir: str | None = None,
    harden: Hardening = Hardening(),  # noqa: B008 - frozen; jsonargparse shows its fields
    preserved: list[str] | str | None = None,
    synonyms: Texts | None = None,
    sentences: Texts | None = None,
    export: list[str] | None = None,
    seed: int = 2024,
    device: str | None = None,
    keep_every_n_steps: int = 20,
    overwrite: bool = False,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Harden a finished run: rounds of finding free tokens that bring its targets back, and of training against them.

    Args:
        run: output folder of ``fit`` or ``fuse``.
        output_dir: where to write; default the run's folder with ``-hardened`` behind it.
        harden: rounds, tokens and training.
        preserved: names to preserve, a list or a text file with one on each line; default the run's
            ``model.domain_names``, and its anchors where it has none.
        synonyms: other words for a target, by target.
        sentences: whole prompts that ask for a target, with its name or without, by target.
        export: formats that are written beside the edit, as ``export`` knows them; default ``single_file`` where the
            base is a single checkpoint, else ``pipeline``.
        seed: of images, LoRA, tokens, prompts, timesteps and noise.
        device: where it is computed, as ``cuda:1``; a GPU when None and there is one.
        keep_every_n_steps: an interrupted hardening resumes from the last of so many steps.
        overwrite: replace ``output_dir`` where it exists.
        pretrained: where the run's base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; where the run found it when None.

    Returns:
        The folder that was written.

    Raises:
        UserError: no run there, one that is hardened or that erases something in part, or a setting that cannot be.
    """
    _check_call(keep_every_n_steps, seed)
    check_formats(export or [], "export")
    old = _checked(Run.load(run), run)
    edit = old.edit  # before anything is read that takes long
    output = Path(output_dir) if output_dir else old.home.with_name(f"{old.home.name}-hardened")
    refuse_inputs(output, [("run", old.home)])
    claim_output(output, overwrite)
    place = _place(device)
    pipeline, source, base = old.base.load(pretrained, layout)
    refuse_inputs(output, [("base model", source.place)])
    check_free_tokens(pipeline, harden.tokens, "harden.tokens")
    check_rank(backbone_of(pipeline), backbone_of(pipeline).attention_layers(harden.layers), harden.rank, "harden.rank")
    forms = _formats(export, source, pipeline)
    asked = _wording(old, pipeline, preserved, synonyms or {}, sentences or {}, own_names(source, STYLES_FILE))
    made = {"edit": hash_files([old.place("edit")]), "unet": old.base.unet}
    config = {**old.config, "output_dir": str(output)}
    config["model"] = base.applied(old.config.get("model") or {})
    new = replace(old, folder=output, base=base, config=config, entries={})
    with launched(place.type == "cuda") as team:
        shown = screen().is_terminal and team.first
        pipeline.to(place)
        job = Job(pipeline, harden, asked, _look(old.config), seed, made, team, shown)
        saved = Saved(output, job.inputs)
        told = said_by_tenths("harden", job.total, "steps") if team.first and not shown else None
        hardened = job.run(edit.weights(backbone_of(pipeline).text_layers()), saved, keep_every_n_steps, told)
        if team.first:
            _write(job, hardened, old, new, source, forms, overwrite)
            saved.remove()
        team.wait()
    return output


def _write(
    job: Job, hardened: Hardened, old: Run, new: Run, source: Source, forms: Sequence[str], overwrite: bool
) -> None:
    """The folder of the hardened run, and what was found on the screen."""
    pipeline = job.pipeline
    facts = report_of(hardened.state, job.wording.targets, job.settings)
    edit = replace(old.edit, hardening=hardened.factors)
    original = {name: weight.cpu() for name, weight in changed_layers(pipeline, edit).items()}
    erased = old.edit.weights({name: original[name] for name in backbone_of(pipeline).text_layers()})
    finished = Finished(new, pipeline, source, edit, original)
    rows = {"original": original, "erased": original | erased, "erased and hardened": finished.weights}
    image = compared(pipeline, job.wording, job.look, job.seed, rows, job.shown)
    pipeline.to("cpu")
    found = reach_of_run(old, pipeline, original, finished.weights, job.wording.names)
    with new.save(overwrite) as aside:
        aside.take_concepts(old)
        take(old.place("edit"), aside.place("edit"))
        take(old.preserved, aside.preserved)
        aside.save_hardening(hardened.factors, job.inputs)
        for form in dict.fromkeys(("refined", *forms)):
            finished.write(form, aside.place(form))
        write_json(aside.report / REPORT, facts)
        add_to_summary(aside.report / SUMMARY, facts)
        add_reach(aside.report / SUMMARY, found)
        write_json(aside.report / REACH, found)
        image.save(aside.report / IMAGE)
        with (aside.report / SUMMARY).open("a", encoding="utf-8") as summary:
            summary.write(f"\n![the same seed before, erased and hardened]({IMAGE})\n")
    show(facts)


def _check_call(every: int, seed: int) -> None:
    """Refuse an interval below one step, and a seed that cannot be.

    Raises:
        UserError: either of them.
    """
    if every < 1:
        raise UserError(f"keep_every_n_steps={every} must be at least 1.")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be from 0 to 2^32 - 1.")


def _checked(old: Run, setting: str) -> Run:
    """Refuse a run that cannot be hardened.

    Raises:
        UserError: it has no targets, it is hardened, it erases a target in part, or its edit is of another run.
    """
    if not old.targets:
        raise UserError(
            f"run={setting} names no targets, so there is nothing to harden. Give the folder that fit wrote."
        )
    if old.hardened:
        raise UserError(f"run={setting} is hardened. Harden the run that it was made from, with other settings.")
    part = [f"{name}={weight:g}" for name, weight in (old.fused.weights if old.fused else {}).items() if weight != 1]
    if part:
        raise UserError(f"run={setting} erases in part ({', '.join(part)}), which cannot be hardened. Fuse it at 1.")
    lost = [target for target in old.targets if not old.statistics_file(target).is_file()]
    if lost:
        raise UserError(
            f"run={setting}: its edit.safetensors erases {lost[0]!r}, of which it has no statistics. Put back the edit "
            f"or the statistics that belong to it."
        )
    return old


def _place(device: str | None) -> torch.device:
    """The device; of several processes each has a GPU of its own where there are any.

    Raises:
        UserError: there is no such device.
    """
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        place = torch.device(device or (gpu if torch.cuda.is_available() else "cpu"))
        if place.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("no GPU is seen")
        if place.index is not None and place.type == "cuda":
            torch.cuda.set_device(place)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"device={device} is not on this machine ({first}). Give cpu, or leave it out.") from error
    return place


def _formats(export: list[str] | None, source: Source, pipeline: Pipeline) -> list[str]:
    """What is written beside edit, hardening and refined weights."""
    forms = ["single_file" if source.file else "pipeline"] if export is None else export
    if "single_file" in forms:
        check_single_file(pipeline)
    return [form for form in forms if form != "edit"]


def _look(config: Mapping[str, Any]) -> Look:
    """How the run's images were generated."""
    data, known = config.get("data") or {}, Look()
    return Look(
        data.get("image_steps", known.steps),
        data.get("image_guidance", known.guidance),
        data.get("image_scheduler", known.scheduler),
        data.get("images_per_batch", known.batch_size),
    )


def _wording(
    old: Run,
    pipeline: Pipeline,
    preserved: list[str] | str | None,
    synonyms: Texts,
    sentences: Texts,
    model_styles: Sequence[str],
) -> Wording:
    """What the run's targets, anchors and names to preserve are asked for by.

    Raises:
        UserError: synonyms or sentences of what is no target, or no name left to preserve.
    """
    data, model = (old.config.get(part) or {} for part in ("data", "model"))
    concepts = [Concept(c["target"], c["anchor"], c.get("kind", "object")) for c in old.concepts]
    texts = []
    for setting, given in (("synonyms", synonyms), ("sentences", sentences)):
        own = {clean_name(name, setting): clean_names(words, setting) for name, words in given.items()}
        unknown = [name for name in own if name not in old.targets]
        if unknown:
            known = ", ".join(old.targets)
            raise UserError(f"--{setting} names {unknown[0]!r}, no target of the run. Choose from {known}.")
        empty = [name for name, words in own.items() if not words or not all(words)]
        if empty:
            raise UserError(f"--{setting} of {empty[0]!r} hold an empty text, or none. Write some, or leave them out.")
        texts.append(own)
    from_run = preserved is None
    setting = "model.domain_names" if from_run else "preserved"
    names = read_names(model.get("domain_names") if from_run else preserved, setting)
    asked = [*old.targets, *(word for words in texts[0].values() for word in words)]
    left = names_beside(pipeline, names, asked)
    taken = [name for name in names if asks_for(name, asked) or not names_beside(pipeline, [name], asked)]
    if taken and not from_run:
        raise UserError(f"preserved: {taken[0]!r} asks for a target, or is a word for one. Leave it out.")
    for name, word in holding(left, asked):
        rank_zero_warn(
            f"{setting}: {name!r} holds {word!r}, which is erased, and preserving it would bring that back. Leave it "
            f"out, unless it is another thing (as a hot dog is no dog).",
            category=Advice,
        )
    chosen = model.get("domain_styles")
    styles = [] if chosen in (AUTO, None) else read_names(chosen, "model.domain_styles")
    if not from_run or chosen in (AUTO, None):
        styles = [*styles, *model_styles, *common_words("styles")]
    templates = templates_of(data.get("templates"), concepts)
    return wording_of(concepts, templates, left, texts[0], texts[1], styles=styles)
