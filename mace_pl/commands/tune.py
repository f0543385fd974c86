"""Search the weights of a finished run's closed forms and its strengths, and confirm what is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isclose
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from mace_pl.commands.fit_order import study_of
from mace_pl.commands.fuse import fuse_run
from mace_pl.commands.tune_training import Trainings
from mace_pl.evaluation.clip import ClipEncoder
from mace_pl.evaluation.judges import judge_labels
from mace_pl.files.artifacts import claim_output, write_json, written_aside
from mace_pl.files.identity import hash_files, identity
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.screen import screen
from mace_pl.run import Run
from mace_pl.tuning.ask import Asking, preserved_names
from mace_pl.tuning.checks import check, check_least, check_places
from mace_pl.tuning.measure import Measure, Scores, says
from mace_pl.tuning.page import page, table
from mace_pl.tuning.pick import Tried, limit, pick
from mace_pl.tuning.prompts import DEFAULTS
from mace_pl.tuning.search import STUDY, Search
from mace_pl.tuning.space import changed, space_of, strengths_in
from mace_pl.tuning.trial import of, of_values, solver, solving, trial_of

SEARCHED = ("search, the run as it was", "search, taken")
CONFIRMED = ("confirmation, the run as it was", "confirmation, taken")


def tune_run(
    run: str,
    output_dir: str | None = None,
    study: str | None = None,
    trials: int = 40,
    names: list[str] | str | None = None,
    judge: Literal["clip"] | torch.nn.Module = "clip",
    confirm_by: Literal["clip"] | torch.nn.Module | None = None,
    classifier: str = "checkpoints/emoji/clip",
    sentences: str | None = None,
    at_most: str | None = None,
    at_least: str | None = None,
    seeds: int = DEFAULTS["seeds"],
    pilot_seeds: int = 1,
    confirm_seeds: int = DEFAULTS["confirm_seeds"],
    near: int = DEFAULTS["near"],
    far: int = DEFAULTS["far"],
    spread: float = 100.0,
    strengths: bool | None = None,
    train: bool = False,
    steps: int = 20,
    guidance: float = 5.0,
    batch_size: int = 20,
    seed: int = 2024,
    overwrite: bool = False,
    save_pipeline: bool = True,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Search the weights of a run's closed forms and its strengths, and confirm what is found on other images.

    Every trial solves both closed forms, generates images and scores them; with ``train`` it trains LoRAs too. The
    search lies on disk, resumes when the command is given again, and several processes may work on it. Needs the extra
    ``tune``.

    Args:
        run: output folder of ``fit`` or ``fuse``.
        output_dir: where the run with the found weights is written; default the run's folder with ``-tuned`` behind it.
        study: folder of the search and of its page; default ``output_dir`` with ``.study`` behind it.
        trials: how many in all, those of earlier calls included.
        names: what is preserved, a list or a text file; default the run's ``model.domain_names``.
        judge: what says what an image shows in the search: ``clip``, the classifier, or a
            :class:`mace_pl.evaluation.clip.Judge`.
        confirm_by: likewise in the confirmation; that of the search when None.
        classifier: folder of a CLIPModel, which also says which names are next to the targets.
        sentences: a file of sentences with slots, as ``test`` takes it; the project's prompts with attributes when
            None. Every other prompt is the search's, the others are the confirmation's.
        at_most: ``acc_e=0.02``: take the best trial whose targets are still seen in no more than that.
        at_least: ``acc_s=0.95``: take the best trial whose preserved names are seen in at least that.
        seeds: images of each prompt in the search.
        pilot_seeds: of these, how many every trial generates; a trial goes on where they are not worse than the median.
        confirm_seeds: images of each prompt in the confirmation, by seeds of its own.
        near: how many preserved names next to each target are scored.
        far: how many of the others.
        spread: by which factor a weight may fall and rise.
        strengths: search the erasure strength of each target too; where there are two to four of them when None.
        train: search the learning rate, steps and rank of the LoRAs too; a setting is trained once for all trials.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        batch_size: images at once.
        seed: of the search.
        overwrite: replace ``output_dir`` where it exists.
        save_pipeline: write the whole pipeline too.
        pretrained: where the run's base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now.

    Returns:
        The folder that was written.

    Raises:
        UserError: no run there, nothing to search, a judge that does not know a name, or no trial within the limits.
    """
    limits = limit(at_most, "acc_e", "at_most"), limit(at_least, "acc_s", "at_least")
    counts = {"trials": trials, "seeds": seeds, "pilot_seeds": pilot_seeds, "confirm_seeds": confirm_seeds}
    check(counts | {"steps": steps, "batch_size": batch_size}, spread)
    check_least({"near": near, "far": far, "guidance": guidance, "seed": seed})
    old = Run.load(run)
    output = Path(output_dir) if output_dir else old.home.with_name(f"{old.home.name}-tuned")
    folder = Path(study) if study else study_of(output)
    base = pretrained or old.base.pretrained
    for setting, place in (("output_dir", output), ("study", folder)):
        refuse_inputs(place, [("run", old.home), ("base model", base)], setting)
    check_places(folder, output, sentences)
    claim_output(output, overwrite)
    again, clip = solver(old, pretrained, layout), ClipEncoder(classifier, "classifier")
    images = steps, guidance, batch_size
    asked = Asking(old, again, clip, preserved_names(old, again, names), sentences, (near, far), seed)
    rows = asked.rows(0, seeds, pilot_seeds)
    ranges, first = space_of(again, spread, strengths)
    trainings = Trainings(again, folder)
    if train:
        choices, own = trainings.choices()
        ranges, first = {**ranges, **choices}, first | own
    inputs: dict[str, Any] = {
        "run": hash_files([old.place("edit")]),
        "ranges": ranges,
        "images": images,
        "judge": says(judge),
    }
    inputs |= {"rows": [asdict(row) for row in rows], "seed": seed}
    search = Search(folder / STUDY, ranges, seed, identity(inputs))
    measure = Measure(again.pipeline, rows, asked.seeing(judge), *images)
    start = of(measure, old)
    say(f"{len(measure.rows)} of {measure.asked} images count: the original answers them. The run as it is: {start}")
    solve = solving(again, trainings)
    search.run(trials, trial_of(measure, solve), first)
    picked = pick(search.tried(), *limits)
    measure.take(again.original)
    other = judge if confirm_by is None else confirm_by
    confirm = Measure(again.pipeline, asked.rows(1, confirm_seeds, confirm_seeds), asked.seeing(other), *images)
    found = {SEARCHED[0]: start, SEARCHED[1]: picked.scores}
    own_taken = all(isclose(value, first[name]) for name, value in picked.values.items())
    found[CONFIRMED[0]] = of(confirm, old)
    found[CONFIRMED[1]] = found[CONFIRMED[0]] if own_taken else of_values(confirm, solve, picked.values)
    said: dict[str, Any] = {"run": old.home.name, "judge": judge, "confirm": other, "limits": limits, "own": own_taken}
    tell(folder, search, picked, found, said)
    where: dict[str, Any] = {"pretrained": pretrained, "layout": layout}  # written last: killed before, all is resumed
    trained = run if trainings.setting(picked.values) == trainings.own else str(trainings.run_of(picked.values).folder)
    strong = again.strengths | strengths_in(picked.values)
    fuse_run(trained, str(output), None, strong, overwrite, save_pipeline, **changed(picked), **where)
    return output


def say(line: str) -> None:
    """A line on the terminal."""
    screen().print(line, highlight=False)


def tell(folder: Path, search: Search, picked: Tried, found: Mapping[str, Scores], settings: Mapping[str, Any]) -> None:
    """Write the page and its figures into the folder of the search, and print what was found.

    Args:
        folder: of the search.
        search: the trials.
        picked: what was taken.
        found: scores of the run as it was and of what was taken, in the search and in the confirmation.
        settings: ``run``, ``judge``, ``confirm``, ``limits``, and ``own``: whether the run's own weights were taken.
    """
    tried, gap = search.tried(), found[SEARCHED[1]].h - found[CONFIRMED[1]].h
    limits = [
        text
        for text, value in zip(("acc_e at most", "acc_s at least"), settings["limits"], strict=True)
        if value is not None
    ]
    values = [value for value in settings["limits"] if value is not None]
    rule = "Taken: the largest H" + "".join(f", {t} {v:g}" for t, v in zip(limits, values, strict=True)) + "."
    content = {
        "run": settings["run"],
        "trials": search.counts,
        "rule": rule,
        "judge": judge_labels([settings["judge"]])[0],
        "confirmed": {"judge": judge_labels([settings["confirm"]])[0]},
        "weights": dict(picked.values),
        "figures": {name: {**asdict(one), "h": one.h} for name, one in found.items()},
        "gap": gap,
        "tried": [{"trial": one.number, "weights": dict(one.values), **asdict(one.scores)} for one in tried],
    }
    write_json(folder / "tuning.json", content)
    with written_aside(folder / "tuning.html") as aside:
        aside.write_text(page(content, tried, found[SEARCHED[0]], picked), encoding="utf-8")
    columns, rows = table(tried)
    shown = Table("", *(f"trial {row[0]}" for row in rows), title="Trials that no other beats")
    for i, column in enumerate(columns[1:], 1):  # few trials have many weights: upright it fits a terminal
        shown.add_row(column, *(row[i].replace(", ", "\n") for row in rows))
    screen().print(shown)
    say(rule)
    if settings["own"]:
        say("No trial is better than the run's own weights: what is written is the same edit.")
    for name, one in found.items():
        say(f"{name}: {one}")
    say(f"H from search to confirmation: {0.0 - gap:+.3f} (judge of the confirmation: {content['confirmed']['judge']})")
    say(f"Page of the search: {folder / 'tuning.html'}")
