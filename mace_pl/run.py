"""The folder of a run: what lies in it. Whatever reads or writes such a folder goes through :class:`Run`.

======================================  ===============================================================================
``config.yaml``                         the complete configuration, enough to repeat the run
``edit.safetensors``                    the edit in its smallest exact form; its header holds what it was made from
``refined.safetensors``                 the edited keys and values
``stages/lora/<target>.safetensors``    what stage 2 trained for a concept; none where nothing was trained
``statistics/<target>.safetensors``     the sums of a concept
``preserved.json``                      which names of ``model.domain_vocabulary`` ``fit`` preserved
``report/``                             images, scores and losses of ``fit``; ``fuse`` writes none
``pipeline/``, ``lora/`` and others     further formats of the edit (:data:`PLACES`)
======================================  ===============================================================================

``fit`` and ``fuse`` write the same folder, so that a fused run can be exported, fused again and scored as a fitted one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_metadata, read_tensors, slug, write_tensors, written_aside
from mace_pl.files.paths import resolve
from mace_pl.methods.edit import STAGE2, STAGE2_PREFIX, ConceptSums, Edit, Factors
from mace_pl.models.base_model import BaseModel

CONFIG = "config.yaml"
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
    """

    folder: Path
    base: BaseModel
    concepts: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    fused: Fused | None = None

    # --- read ----------------------------------------------------------------------------------------------------

    @staticmethod
    def edit_in(folder: Path) -> Path | None:
        """The file of a folder that holds the edit of a run; None where there is none."""
        files = (folder / PLACES[name] for name in ("edit", "refined"))
        return next((file for file in files if file.is_file()), None)

    @staticmethod
    def load(folder: str | Path, setting: str = "run") -> Run:
        """Read a run.

        Args:
            folder: output folder of ``fit`` or ``fuse``.
            setting: the option that named it, for messages.

        Raises:
            UserError: no run is there, or its edit cannot be read.
        """
        root = resolve(folder)
        file = Run.edit_in(root)
        if file is None:
            raise UserError(f"{setting}={folder} is no output folder of fit or fuse (it has no {PLACES['edit']}).")
        made, settings = read_metadata(file, setting), root / CONFIG
        config = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        base = BaseModel.read(config.get("model", {}), made)
        again = Fused(**{item.name: made[item.name] for item in fields(Fused)}) if "method" in made else None
        return Run(root, base, made.get("concepts", []), config, made.get("seed"), again)

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
        """R and the fused LoRA.

        Raises:
            UserError: the file is not there, or cannot be read.
        """
        return Edit.load(self.place("edit"))

    def refined(self, own: Mapping[str, Tensor], setting: str = "run") -> dict[str, Tensor]:
        """The edited keys and values: :func:`read_refined`."""
        return read_refined(self.place("refined"), own, setting)

    def concept(self, target: str) -> tuple[ConceptSums, Factors]:
        """The sums of a concept, and its LoRA (A, B) by layer, which is empty where nothing was trained.

        Raises:
            UserError: a file is not there, or cannot be read.
        """
        shape = (-1, -1)
        sums, _ = read_tensors(self.statistics_file(target), "concept", "run", {"F": shape, "G": shape, "F_all": shape})
        if not self.lora_file(target).is_file():
            return ConceptSums(**sums), {}
        lora, _ = read_tensors(self.lora_file(target), STAGE2, "run")
        names = [key.removeprefix(STAGE2_PREFIX)[:-2] for key in lora if key.endswith(".A")]
        factors = {name: (lora[f"{STAGE2_PREFIX}{name}.A"], lora[f"{STAGE2_PREFIX}{name}.B"]) for name in names}
        return ConceptSums(**sums), factors

    # --- places --------------------------------------------------------------------------------------------------

    def place(self, form: str) -> Path:
        """Where a format of the edit lies: one of :data:`PLACES`."""
        return self.folder / PLACES[form]

    def lora_file(self, target: str) -> Path:
        """What stage 2 trained for a concept."""
        return self.folder / "stages" / "lora" / f"{slug(target)}.safetensors"

    def statistics_file(self, target: str) -> Path:
        """The sums of a concept."""
        return self.folder / "statistics" / f"{slug(target)}.safetensors"

    @property
    def preserved(self) -> Path:
        """The names of ``model.domain_vocabulary`` that are preserved, and how far the plain edit would move them."""
        return self.folder / "preserved.json"

    @property
    def report(self) -> Path:
        """Images, scores and losses of ``fit``."""
        return self.folder / "report"

    @property
    def metrics(self) -> Path:
        """The figures of the report."""
        return self.report / "metrics.json"

    # --- write ---------------------------------------------------------------------------------------------------

    @contextmanager
    def save(self) -> Iterator[Run]:
        """Write the folder aside, with its configuration; it gets its name when the block ends without an error.

        Yields:
            The same run in the folder aside, into which the block writes the rest.

        Raises:
            UserError: the place cannot be written.
        """
        with written_aside(self.folder, "output_dir") as aside:
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

    def take_concepts(self, other: Run) -> None:
        """Take sums and LoRAs over from another run: as links, so that they lie on the disk once, or as copies."""
        for target in self.targets:
            for name in ("statistics_file", "lora_file"):
                source, own = getattr(other, name)(target), getattr(self, name)(target)
                if source.is_file():
                    own.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        os.link(source.resolve(), own)
                    except OSError:  # another disk, or one without links
                        shutil.copyfile(source, own)


def read_refined(file: Path, own: Mapping[str, Tensor], setting: str) -> dict[str, Tensor]:
    """The edited keys and values by name in the network.

    Args:
        file: ``refined.safetensors``.
        own: the weights of the network that they are put into.
        setting: the option that named the file.

    Raises:
        UserError: it was made from a model of another shape, or cannot be read.
    """
    weights, _ = read_tensors(file, "refined", setting)
    wrong = [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]
    if wrong:
        raise UserError(f"{setting}: {file} was made from another model: {wrong[0]} does not fit its UNet.")
    return weights
