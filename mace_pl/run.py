"""The folder of a run: what lies in it. Whatever reads or writes such a folder goes through :class:`Run`.

======================================  ===============================================================================
``config.yaml``                         the complete configuration, enough to repeat the run
``edit.safetensors``                    the edit in its smallest exact form; its header holds what it was made from
``refined.safetensors``                 the edited keys and values, and all that a hardening changes
``hardening.safetensors``               the LoRA of a hardened run, on top of the edit; in the names of PEFT
``stages/lora/<target>.safetensors``    what stage 2 trained for a concept; none where nothing was trained
``statistics/<target>.safetensors``     the sums of a concept
``preserved.json``                      which names of ``model.domain_vocabulary`` ``fit`` preserved
``report/``                             images, scores and losses of ``fit``; ``fuse`` writes none
``pipeline/``, ``lora/`` and others     further formats of the edit (:data:`PLACES`)
======================================  ===============================================================================

``fit`` and ``fuse`` write the same folder, so that a fused run can be exported, fused again and scored as a fitted one.
The folder of a library stands for its current state (:mod:`mace_pl.files.versions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from torch import Tensor

from mace_pl.concepts.concept import read_concepts
from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_metadata, read_tensors, slug, write_tensors, written_aside
from mace_pl.files.links import take
from mace_pl.files.owned import SHARED
from mace_pl.files.paths import resolve
from mace_pl.files.tables import read_yaml
from mace_pl.files.versions import current, entry_folders, library_of, mend
from mace_pl.methods.edit import STAGE2, STAGE2_PREFIX, ConceptSums, Edit, Factors, read_refined
from mace_pl.methods.hardening import is_hardened, read_hardening, write_hardening
from mace_pl.models.base_model import BaseModel

CONFIG = "config.yaml"
AGAIN = "Restore the file of this run, or fit it again."
#: where each format of the edit lies
PLACES = {
    "pipeline": "pipeline",
    "refined": "refined.safetensors",
    "edit": "edit.safetensors",
    "lora": "lora",
    "lora_diffusers": "lora_diffusers",
    "lora_peft": "lora_peft",
    "single_file": "model.safetensors",
    "unet": "unet.safetensors",
}


@dataclass(frozen=True)
class Fused:
    """How a run was fused again.

    Attributes:
        method: ``fused``, ``added`` or ``refined``.
        weights: erasure strength by target; 1 where a target is not named.
        refine: weights of the refinement.
        fuse: weights of the fusion.
    """

    method: str
    weights: Mapping[str, float]
    refine: Mapping[str, float]
    fuse: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A run and its folder; tensors are read when they are asked for.

    Attributes:
        folder: where it lies.
        base: the model that it edited.
        concepts: ``target``, ``anchor`` and ``kind`` of each.
        config: the complete configuration; empty where the folder has none.
        seed: of the run.
        fused: how it was fused again; None of ``fit``.
        entries: the folder of each target's sums and LoRA; the run's own where none is named.
    """

    folder: Path
    base: BaseModel
    concepts: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    fused: Fused | None = None
    entries: Mapping[str, Path] = field(default_factory=dict)

    # --- read ----------------------------------------------------------------------------------------------------

    @staticmethod
    def edit_in(folder: Path) -> Path | None:
        """The file of a folder that holds the edit of a run; None where there is none."""
        files = (current(folder) / PLACES[name] for name in ("edit", "refined"))
        return next((file for file in files if file.is_file()), None)

    @staticmethod
    def load(folder: str | Path, setting: str = "run") -> Run:
        """Read a run.

        Args:
            folder: output folder of ``fit`` or ``fuse``, or a library.
            setting: the option that named it, for messages.

        Raises:
            UserError: no run is there, or its edit or configuration cannot be read.
        """
        root = current(resolve(folder))
        if (file := Run.edit_in(root)) is None:
            lost, advice = PLACES["edit"], mend(root / PLACES["edit"], "Give the folder that they wrote.")
            raise UserError(f"{setting}={root} is no output folder of fit or fuse (it has no {lost}). {advice}")
        made, settings = read_metadata(file, setting), root / CONFIG
        if made.get("kind") not in ("edit", "refined"):
            raise UserError(f"{setting}: {file} was not written by fit or fuse. Give the folder that they wrote.")
        config = read_yaml(settings, setting) if settings.is_file() else {}
        if settings.is_file() and not (isinstance(config, dict) and isinstance(config.get("model"), dict)):
            raise UserError(f"{setting}: {settings} is no configuration of a run: it has no model. Restore the file.")
        base = BaseModel.read(config.get("model", {}), made)
        again = Fused(**{item.name: made[item.name] for item in fields(Fused)}) if "method" in made else None
        return Run(root, base, made.get("concepts", []), config, made.get("seed"), again, entry_folders(root, made))

    @property
    def home(self) -> Path:
        """The folder that its name comes from: the library of a state, else its own."""
        return library_of(self.folder) or self.folder

    @property
    def targets(self) -> list[str]:
        """What it erases."""
        return [concept["target"] for concept in self.concepts]

    @property
    def provenance(self) -> dict[str, Any]:
        """What each of its files says about itself."""
        made = self.base.provenance | ({} if self.seed is None else {"seed": self.seed})
        return made | {"concepts": list(self.concepts)} | (asdict(self.fused) if self.fused else {})

    @property
    def edit(self) -> Edit:
        """R and the fused LoRA, with the hardening of a hardened run.

        Raises:
            UserError: a file is not there, or cannot be read.
        """
        return replace(Edit.load(self.place("edit")), hardening=read_hardening(self.folder, self.place("edit")))

    @property
    def hardened(self) -> bool:
        """Whether the edit is hardened."""
        return is_hardened(self.folder)

    def refined(self, own: Mapping[str, Tensor], setting: str = "run") -> dict[str, Tensor]:
        """The edited keys and values: :func:`read_refined`."""
        return read_refined(self.place("refined"), own, setting)

    def concept(
        self, target: str, layers: Mapping[str, Tensor] | None = None, trained: bool = False
    ) -> tuple[ConceptSums, Factors]:
        """The sums of a concept, and its LoRA (A, B) by layer, which is empty where nothing was trained.

        Args:
            target: of the run.
            layers: the base's keys and values W [O, D] by name, which the sums and the LoRA must fit.
            trained: whether there must be a LoRA.

        Raises:
            UserError: a file is not there, cannot be read, or is of another concept or model; naming it.
        """
        side = next(iter(layers.values())).shape[1] if layers else -1
        shapes = dict.fromkeys(("F", "G", "F_all"), (side, side))
        sums, made = read_tensors(self.statistics_file(target), "concept", "run", shapes)
        self._check_made(self.statistics_file(target), made, target)
        if not (file := self.lora_file(target)).is_file() and not trained:
            return ConceptSums(**sums), {}
        lora, made = read_tensors(file, STAGE2, "run")
        self._check_made(file, made, target)
        names = [key.removeprefix(STAGE2_PREFIX)[:-2] for key in lora if key.endswith(".A")]
        keys = {name: (f"{STAGE2_PREFIX}{name}.A", f"{STAGE2_PREFIX}{name}.B") for name in names}
        factors = {name: (lora[a], lora[b]) for name, (a, b) in keys.items() if b in lora}
        sides = {name: (B.shape[0], A.shape[1]) for name, (A, B) in factors.items()}
        if layers is not None and sides != {name: tuple(W.shape) for name, W in layers.items()}:
            raise UserError(f"run: {file} does not fit the layers of the run's base model. {mend(file, AGAIN)}")
        return ConceptSums(**sums), factors

    def _check_made(self, file: Path, made: Mapping[str, Any], target: str) -> None:
        """Refuse a concept's file that says that it is of another target or model."""
        wanted = {"target": target, "text_encoder": self.base.text_encoder, "unet": self.base.unet}
        for name, value in wanted.items():
            if value is not None and made.get(name, value) != value:
                what = f"the target {made[name]!r}, not {value!r}" if name == "target" else f"another {name}"
                raise UserError(f"run: {file} was made for {what.replace('_', ' ')}. {mend(file, AGAIN)}")

    # --- places --------------------------------------------------------------------------------------------------

    def place(self, form: str) -> Path:
        """Where a format of the edit lies, or would lie: one of :data:`PLACES`."""
        return self.folder / PLACES[form]

    def written(self, form: str) -> Path:
        """Where a format of the edit lies.

        Raises:
            UserError: it is not there; saying which command writes it.
        """
        if not (place := self.place(form)).exists():
            named = self.home if current(self.home) == self.folder else self.folder  # an older state by itself
            command = f"erase.py export --run {quote(str(named))} --format {form}"
            raise UserError(f"format={form}: {place} is not there. Write it first: {command}")
        return place

    def lora_file(self, target: str) -> Path:
        """What stage 2 trained for a concept."""
        return self.entries.get(target, self.folder) / "stages" / "lora" / f"{slug(target)}.safetensors"

    def statistics_file(self, target: str) -> Path:
        """The sums of a concept."""
        return self.entries.get(target, self.folder) / "statistics" / f"{slug(target)}.safetensors"

    @property
    def preserved(self) -> Path:
        """The names of ``model.domain_vocabulary`` that are preserved, and how far the plain edit would move them."""
        return self.folder / "preserved.json"

    @property
    def report(self) -> Path:
        """Images, scores and losses of ``fit``."""
        return self.folder / "report"

    @property
    def progress(self) -> Path:
        """How the run ended, and when."""
        return self.report / "progress.json"

    @property
    def metrics(self) -> Path:
        """The figures of the report."""
        return self.report / "metrics.json"

    # --- write ---------------------------------------------------------------------------------------------------

    @contextmanager
    def save(self, overwrite: bool = False) -> Iterator[Run]:
        """Write the folder aside, with its configuration; it gets its name when the block ends without an error.

        Args:
            overwrite: replace the folder where it exists; else what was written gets a name beside it.

        Yields:
            The same run in the folder aside, into which the block writes the rest.

        Raises:
            UserError: the place cannot be written, or exists by then.
        """
        with written_aside(self.folder, "output_dir", overwrite=overwrite) as aside:
            aside.mkdir()
            settings = yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True)
            (aside / CONFIG).write_text(settings, encoding="utf-8")
            yield replace(self, folder=aside)

    def save_concept(self, target: str, sums: ConceptSums, factors: Factors) -> None:
        """Write what :meth:`concept` reads; the LoRA under names that no other program takes for one of the base."""
        made = {key: value for key, value in self.provenance.items() if key != "concepts"} | {"target": target}
        if factors:
            tensors = {
                f"{STAGE2_PREFIX}{n}.{x}": t for n, pair in factors.items() for x, t in zip("AB", pair, strict=True)
            }
            write_tensors(self.lora_file(target), tensors, STAGE2, made)
        write_tensors(self.statistics_file(target), sums.tensors, "concept", made)

    def save_hardening(self, factors: Factors, settings: Mapping[str, Any]) -> None:
        """Write ``hardening.safetensors``, with what it was made by, beside the edit."""
        write_hardening(self.folder, self.place("edit"), factors, {**self.provenance, "settings": dict(settings)})

    def take_concepts(self, other: Run) -> None:
        """Take sums and LoRAs over from another run."""
        for target in self.targets:
            take(other.statistics_file(target), self.statistics_file(target))
            take(other.lora_file(target), self.lora_file(target))


def inputs_of(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run reads, by its configuration: what each is, and the place that a setting names."""
    model, data = config["model"], config.get("data") or {}
    found: list[tuple[str, str | None]] = [("base model", model["pretrained"]), ("layout", model.get("layout"))]
    for name in ("prior", "domain"):
        given = model.get(name) or []
        found += [(f"{name} statistics", file) for file in ([given] if isinstance(given, str) else given)]
    pictures = [(SHARED, data["pictures"])] if data.get("pictures") else []
    for one in read_concepts(data["concepts"]) if data.get("concepts") else []:
        found += [(f"images of {one.target!r}", one.images), (f"masks of {one.target!r}", one.masks)]
        pictures += [(f"images of {one.target!r}", f"{pictures[0][1]}/{slug(one.target)}")] if pictures else []
    return [(what, place) for what, place in found if place and resolve(place).exists()] + pictures  # hub ids: nowhere
