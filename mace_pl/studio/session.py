"""What the page does, without the page: a run's edit for any strengths, its images, and saving it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from mace_pl.concepts.templates import IMAGE_TEMPLATE
from mace_pl.errors import UserError
from mace_pl.export.formats import Finished
from mace_pl.files.artifacts import slug, written_aside
from mace_pl.files.versions import current
from mace_pl.library.change import Library, scores_of
from mace_pl.library.history import History
from mace_pl.library.states import Base, members_of
from mace_pl.methods.chosen import chosen
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.sampling import generate
from mace_pl.run import PLACES, Fused, Run
from mace_pl.stages.again import check_files
from mace_pl.stages.live import LiveEdit
from mace_pl.studio.asked import MOST_IMAGES, Asked
from mace_pl.studio.saving import Saved, save_state
from mace_pl.studio.turns import SETTLE, Progress, Turns, counted

FORMATS = ("pipeline", "lora", "single_file", "edit")
SHORT = 12  # digits of a state's id in messages
REMEMBERED = 32  # requests whose images of the original are remembered


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    Attributes:
        original: images of the original model.
        edited: of the edited one, from the same seeds.
        solving: seconds that solving the edit and swapping the weights took.
        generating: seconds that generating took.
    """

    original: Sequence[Image.Image]
    edited: Sequence[Image.Image]
    solving: float
    generating: float


class Studio:
    """One pipeline and the edits of one run, for any number of users.

    Between two turns the pipeline has its original weights.

    Args:
        base: the base model, with the run that is shown.
        output: folder into which exports are written.
    """

    def __init__(self, base: Base, output: Path) -> None:
        self.base, self.output, self.turns = base, output, Turns()
        self.saved = Saved(base.run, {})
        method = chosen(base.run.config["model"].get("method"))
        self.takes_strength = method.takes_strength
        self.live = LiveEdit(base.run, base.pipeline, method, base.way)
        self.originals: dict[tuple[object, ...], Sequence[Image.Image]] = {}

    @staticmethod
    def open(run: str, output: str | None = None, pretrained: str | None = None, layout: str | None = None) -> Studio:
        """Read a run or a library, and load its base model.

        Raises:
            UserError: no run there, no sums or LoRAs of its concepts, or another base model.
        """
        library = Library.open(run)
        base = Base.load(library.run, pretrained, layout)
        check_files(base.run.config["model"])
        home = library.folder
        return Studio(
            base,
            Path(output) if output else home.with_name(f"{home.name}-studio"),
        )

    @property
    def run(self) -> Run:
        """The run as it was opened, or as it was saved last."""
        return self.saved.run

    @property
    def state(self) -> str:
        """Id of the state that the page shows; the folder's name of a run that is no library yet."""
        return self.run.folder.name

    @property
    def outdated(self) -> bool:
        """Whether another command has changed the library meanwhile."""
        return current(self.run.home).resolve() != self.run.folder.resolve()

    @property
    def strengths(self) -> dict[str, float]:
        """Those of the run."""
        own = self.run.fused.weights if self.run.fused else {}
        return {target: float(own.get(target, 1.0)) for target in self.run.targets}

    # --- images ---------------------------------------------------------------------------------------------------

    def images(self, asked: Asked, who: str, progress: Progress | None = None, number: int = 0) -> Shown:
        """Images of the original and of the edited model; those of the original are remembered.

        Args:
            asked: what the user has set.
            who: the user.
            progress: called after each denoising step.
            number: of the request, counted by the user's browser.

        Raises:
            Cancelled: the user has cancelled, or asked for something else.
            UserError: what is asked for cannot be.
        """
        asked.check()
        with self.turns.turn(who, "images", number, SETTLE) as check:
            return self._generated([asked.prompt] * len(asked.seeds), asked, check, progress)

    def grid(
        self, asked: Asked, names: Sequence[str], who: str, progress: Progress | None = None, number: int = 0
    ) -> tuple[list[str], Shown]:
        """The prompts and an image of each target and of some preserved names, from the first seed.

        Args:
            asked: what the user has set; its prompt is not used.
            names: those that are preserved.
            who: the user.
            progress: called after each denoising step.
            number: of the request, counted by the user's browser.

        Raises:
            Cancelled: the user has cancelled, or asked for the grid anew.
            UserError: what is asked for cannot be.
        """
        asked.check()
        kinds = {concept["target"]: concept.get("kind", "object") for concept in self.base.run.concepts}
        named = [*kinds, *(name for name in names if name not in kinds)]
        prompts = [IMAGE_TEMPLATE[kinds.get(name, "object")].replace("{}", name) for name in named]
        each = replace(asked, seeds=asked.seeds[:1] * len(named))
        with self.turns.turn(who, "grid", number) as check:
            return named, self._generated(prompts, each, check, progress)

    def _generated(
        self, prompts: Sequence[str], asked: Asked, check: Callable[[], None], progress: Progress | None
    ) -> Shown:
        """Images of both models; the pipeline is this turn's."""
        key = (tuple(prompts), asked.seeds, asked.steps, asked.guidance)
        batch = min(len(prompts), MOST_IMAGES)
        batches = -(-len(prompts) // batch)
        step = counted(check, progress, asked.steps * batches * (1 if key in self.originals else 2))

        def made() -> Sequence[Image.Image]:
            settings = (asked.steps, asked.guidance, batch)
            return generate(self.base.pipeline, prompts, asked.seeds, *settings, on_step=step)

        started = time.perf_counter()
        if key not in self.originals:
            while len(self.originals) >= REMEMBERED:
                del self.originals[next(iter(self.originals))]
            self.originals[key] = made()
        original, between = self.originals[key], time.perf_counter()
        with self.edited(asked.strengths):
            solved = time.perf_counter()
            edited = made()
        ended = time.perf_counter()
        return Shown(original, edited, solved - between, ended - solved + between - started)

    @contextmanager
    def edited(self, strengths: Mapping[str, float]) -> Iterator[Edit | None]:
        """Within the context the pipeline has the edited weights."""
        edit, backbone = self.live.edit(strengths), backbone_of(self.base.pipeline)
        try:
            if edit is not None:
                backbone.set_key_values(edit.weights(self.live.original))
            yield edit
        finally:
            backbone.set_key_values(self.live.original)

    # --- written --------------------------------------------------------------------------------------------------

    def save(
        self, asked: Asked, reason: str | None = None, requester: str | None = None, seen: str | None = None
    ) -> str:
        """Make the strengths a new state of the library, which a run becomes by that; returns the state's id.

        Args:
            asked: what the user has set.
            reason: why; free text.
            requester: who asked for it; free text.
            seen: the :attr:`state` whose strengths the user has changed; the current one when None.

        Raises:
            UserError: no target is left, or someone else has changed or is writing the library.
        """
        asked.check()
        with self.turns.alone():
            if seen not in (None, self.state):
                raise UserError(
                    f"save: another browser has saved the state {self.state[:SHORT]} since this page was opened. "
                    "Reload the page to see its strengths."
                )
            saved = save_state(self.saved, self.base, asked.strengths, reason, requester)
            self.saved = saved
            return self.state

    def export(self, asked: Asked, form: str, name: str) -> Path:
        """Write the edit in a format; returns the place.

        Args:
            asked: what the user has set.
            form: one of :data:`FORMATS`.
            name: of the folder below :attr:`output` that is written.

        Raises:
            UserError: another format, no name, no target, or a place that exists.
        """
        asked.check()
        if form not in FORMATS or not name.strip():
            raise UserError(f"export: choose a format ({', '.join(FORMATS)}) and give a name.")
        if not asked.strengths:
            raise UserError("export: no target is chosen. Use the original model instead.")
        place = self.output / slug(name.strip()) / PLACES[form]
        with self.turns.alone(), self.edited(asked.strengths) as edit:
            assert edit is not None
            if place.exists():
                raise UserError(f"export: {place} exists. Give another name.")
            parts = (self._as_run(asked, place), self.base.pipeline, self.base.source, edit, self.live.original)
            finished = Finished(*parts, seen=self._seen(asked.strengths))
            with written_aside(place) as aside:
                finished.write(form, aside)
        return place

    def _seen(self, targets: Iterable[str]) -> dict[str, Mapping[str, float]]:
        """How often targets were seen before and after their own run, of those that were judged."""
        history, known = History.load(self.run.home), dict[str, Mapping[str, float]]()
        if history.events:
            known = history.scores(members_of(self.run).entries)
        else:
            known = {target: seen for target in self.run.targets if (seen := scores_of(self.run, target))}
        return {target: known[target] for target in targets if target in known}

    def _as_run(self, asked: Asked, place: Path) -> Run:
        """The run whose edit has these strengths."""
        model = self.base.run.config["model"]
        fused = Fused(self.base.way, dict(asked.strengths), model["refine"], model["fuse"])
        concepts = [concept for concept in self.base.run.concepts if concept["target"] in asked.strengths]
        return replace(self.base.run, folder=place.parent, concepts=concepts, fused=fused, entries={})
