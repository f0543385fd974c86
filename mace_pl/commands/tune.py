"""Search the weights of a finished run's closed forms, and confirm what is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from mace_pl.commands.fuse import fuse_run
from mace_pl.concepts.concept import read_names
from mace_pl.errors import UserError
from mace_pl.evaluation.clip import ClipEncoder
from mace_pl.evaluation.judges import judge_labels
from mace_pl.evaluation.words import neighbours
from mace_pl.files.artifacts import claim_output, write_json, written_aside
from mace_pl.files.identity import hash_files, identity
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.screen import screen
from mace_pl.methods.chosen import chosen
from mace_pl.models.backbone import backbone_of
from mace_pl.models.text_encoding import names_beside
from mace_pl.run import Run
from mace_pl.stages.again import Again, check_files, model_of
from mace_pl.tuning.checks import check, check_least, check_places
from mace_pl.tuning.measure import Judge, Measure, Scores, says, scores, seeing
from mace_pl.tuning.page import page, table
from mace_pl.tuning.pick import Tried, limit, pick
from mace_pl.tuning.prompts import Part, Row, roles_of, rows_of
from mace_pl.tuning.search import Score, Search
from mace_pl.tuning.space import changed, space_of, stage_weights

LARGEST = 12  # names next to the targets
SEARCHED = ("search, the run as it was", "search, taken")
CONFIRMED = ("confirmation, the run as it was", "confirmation, taken")


def tune_run(
    run: str,
    output_dir: str | None = None,
    study: str | None = None,
    trials: int = 40,
    names: list[str] | str | None = None,
    judge: torch.nn.Module | Literal["clip"] = "clip",
    confirm_by: torch.nn.Module | Literal["clip"] | None = None,
    classifier: str = "checkpoints/emoji/clip",
    sentences: str | None = None,
    at_most: str | None = None,
    at_least: str | None = None,
    seeds: int = 4,
    pilot_seeds: int = 1,
    confirm_seeds: int = 8,
    near: int = 3,
    far: int = 8,
    spread: float = 100.0,
    steps: int = 20,
    guidance: float = 5.0,
    batch_size: int = 20,
    seed: int = 2024,
    overwrite: bool = False,
    save_pipeline: bool = True,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Search the weights of a run's closed forms, without training, and confirm what is found on other images.

    Every trial solves both closed forms, generates images and scores them; the search lies on disk, resumes when the
    command is given again, and several processes may work on it. Needs the extra ``tune``.

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
    folder = Path(study) if study else output.with_name(f"{output.name}.study")
    for setting, place in (("output_dir", output), ("study", folder)):
        refuse_inputs(place, [("run", old.home)], setting)
    check_places(folder, sentences)
    claim_output(output, overwrite)
    again, clip = solver(old, pretrained, layout), ClipEncoder(classifier, "classifier")
    images = steps, guidance, batch_size
    asked = Asking(old, again, clip, preserved_names(old, again, names), sentences, (near, far), seed)
    rows = asked.rows(0, seeds, pilot_seeds)
    ranges, first = space_of(again, spread)
    inputs: dict[str, Any] = {
        "run": hash_files([old.place("edit")]),
        "ranges": ranges,
        "images": images,
        "judge": says(judge),
    }
    inputs |= {"rows": [asdict(row) for row in rows], "seed": seed}
    search = Search(folder / "study.sqlite3", ranges, seed, identity(inputs))
    measure = Measure(again.pipeline, rows, asked.seeing(judge), *images)
    start = of(measure, old)
    say(f"{len(measure.rows)} of {measure.asked} images count: the original answers them. The run as it is: {start}")
    search.run(trials, trial_of(measure, again), first)
    picked = pick(search.tried(), *limits)
    where: dict[str, Any] = {"pretrained": pretrained, "layout": layout}
    fuse_run(run, str(output), None, None, overwrite, save_pipeline, **changed(picked), **where)
    measure.take(again.original)
    other = judge if confirm_by is None else confirm_by
    confirm = Measure(again.pipeline, asked.rows(1, confirm_seeds, confirm_seeds), asked.seeing(other), *images)
    found = {SEARCHED[0]: start, SEARCHED[1]: picked.scores}
    found |= {CONFIRMED[0]: of(confirm, old), CONFIRMED[1]: of(confirm, Run.load(output))}
    tell(folder, search, picked, found, {"run": old.home.name, "judge": judge, "confirm": other, "limits": limits})
    return output


def say(line: str) -> None:
    """A line on the terminal."""
    screen().print(line, highlight=False)


def solver(run: Run, pretrained: str | None, layout: str | None) -> Again:
    """The run, ready to be solved again, with its original model on the device that there is.

    Raises:
        UserError: a run that is hardened, or was fused in another way.
    """
    model = model_of(run)
    method = chosen(model.get("method"))
    way = run.fused.method if run.fused else ""
    if way and way != ("fused" if method.trains else "refined"):
        raise UserError(f"run={run.folder} was fused with method={way}, whose weights are not searched. Give another.")
    if run.hardened:
        raise UserError(f"run={run.folder} is hardened, for the edit as it is. Give the run that it was made from.")
    check_files(model)
    pipeline, *_ = run.base.load(pretrained, layout)
    again = Again(run, pipeline, method)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    return again


def preserved_names(run: Run, again: Again, given: list[str] | str | None) -> list[str]:
    """The names that are scored beside the targets.

    Raises:
        UserError: there are none.
    """
    names = read_names(run.config["model"].get("domain_names") if given is None else given, "names")
    left = names_beside(again.pipeline, names, run.targets)
    if not left:
        raise UserError("names: the run has no model.domain_names to score beside its targets. Give a list of others.")
    return left


@dataclass(frozen=True)
class Asking:
    """What is asked of the models.

    Attributes:
        run: the run.
        again: its model.
        clip: the classifier, which says which names are next to the targets.
        names: what is preserved.
        sentences: a file of them, or None.
        counts: names next to each target, and others, that are scored.
        seed: of the draw.
    """

    run: Run
    again: Again
    clip: ClipEncoder
    names: Sequence[str]
    sentences: str | None
    counts: tuple[int, int]
    seed: int

    def rows(self, part: Part, seeds: int, pilot: int) -> list[Row]:
        """The images of a part; the confirmation has other names beside the near ones, and twice as many."""
        near, far = self.counts
        targets, kinds = self.run.targets, {c["target"]: c.get("kind", "object") for c in self.run.concepts}
        texts = self.clip.text(targets), self.clip.text(self.names)
        found = neighbours(targets, self.names, *texts, self.clip.tokenizer, near).values()
        next_to = list(dict.fromkeys(name for own in found for name in own["embedding"] + own["tokens"]))[:LARGEST]
        roles = roles_of(targets, next_to, self.names, far * (1 + part), self.seed + part)
        kind = "person" if set(kinds.values()) == {"person"} else "object"
        return rows_of(roles, {name: kinds.get(name, kind) for name in roles}, part, self.sentences, seeds, pilot)

    def seeing(self, judge: Judge) -> Callable[[Sequence[Any]], list[str]]:
        """What a judge sees, among targets and names."""
        return seeing(judge, self.clip, [*self.run.targets, *self.names])


def of(measure: Measure, run: Run) -> Scores:
    """Scores of a run, by the weights that its folder holds."""
    backbone = backbone_of(measure.pipeline)
    own = {f"{name}.weight": weight for name, weight in backbone.text_layers().items()}
    weights = run.refined(own)
    measure.take({name.removesuffix(".weight"): weight for name, weight in weights.items()})
    return scores(measure.score(measure.rows))


def trial_of(measure: Measure, again: Again) -> Score:
    """What scores weights: by a few seeds first, then by all; None where these or the closed form say no."""

    def score(weights: Mapping[str, float], goes_on: Callable[[Scores], bool]) -> Scores | None:
        try:
            measure.take(again.solve(*stage_weights(weights)))
        except UserError:  # a singular system
            return None
        pilot = measure.score([row for row in measure.rows if row.pilot])
        return scores(measure.score(measure.rows, pilot)) if goes_on(scores(pilot)) else None

    return score


def tell(folder: Path, search: Search, picked: Tried, found: Mapping[str, Scores], settings: Mapping[str, Any]) -> None:
    """Write the page and its figures into the folder of the search, and print what was found.

    Args:
        folder: of the search.
        search: the trials.
        picked: what was taken.
        found: scores of the run as it was and of what was taken, in the search and in the confirmation.
        settings: ``run``, ``judge``, ``confirm`` and ``limits``.
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
        "weights": dict(picked.weights),
        "figures": {name: {**asdict(one), "h": one.h} for name, one in found.items()},
        "gap": gap,
        "tried": [{"trial": one.number, "weights": dict(one.weights), **asdict(one.scores)} for one in tried],
    }
    write_json(folder / "tuning.json", content)
    with written_aside(folder / "tuning.html") as aside:
        aside.write_text(page(content, tried, found[SEARCHED[0]], picked), encoding="utf-8")
    columns, rows = table(tried)
    shown = Table(*columns, title="Trials that no other beats")
    for row in rows:
        shown.add_row(*row)
    screen().print(shown)
    say(rule)
    for name, one in found.items():
        say(f"{name}: {one}")
    say(f"H from search to confirmation: {-gap:+.3f} (judge of the confirmation: {content['confirmed']['judge']})")
    say(f"Page of the search: {folder / 'tuning.html'}")
