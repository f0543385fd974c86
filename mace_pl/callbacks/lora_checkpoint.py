"""Save what stage 2 has trained beside the output folder, so that an interrupted run resumes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_metadata, read_tensors, slug, write_tensors
from mace_pl.files.identity import differing, identity, not_taken
from mace_pl.files.leftovers import clear_leftovers
from mace_pl.files.paths import training_folder
from mace_pl.files.screen import screen
from mace_pl.images.protocols import RunData
from mace_pl.stages.train import ConceptState

KIND = "training"


class LoRACheckpoint(Callback):
    """One file per group of concepts: LoRAs, the optimizer's moments and losses, written aside and renamed.

    The files go into ``.<name>.training`` beside the output folder and are removed when the run is written. A concept
    is resumed only where every input of its training is the same, so a changed setting starts it anew; the log says so.
    The weights are those of an unbroken run: bit for bit in the same groups, to float32 rounding in others.

    Args:
        output_dir: the run's folder.
        every_n_steps: a group in training is saved every so many steps; finished ones always are.

    Raises:
        UserError: ``every_n_steps`` is below 1.
    """

    def __init__(self, output_dir: str, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise UserError(f"keep_every_n_steps={every_n_steps} must be at least 1.")
        self.folder = training_folder(Path(output_dir))
        self.every_n_steps = every_n_steps
        self.identities: dict[int, dict[str, str]] = {}
        self.pending: Any = None  # the last batch that was trained, where it is not saved yet

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume what an interrupted run has left."""
        module = cast(ErasureModule, pl_module)
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        if module.loras is None:
            return
        self.identities = {concept: module.identity_of(concept) for concept in range(len(data.concepts))}
        by_key = {identity(content): concept for concept, content in self.identities.items()}
        best: dict[int, int] = {}
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            tensors, meta = read_tensors(path, KIND, "output_dir")
            for key, left in meta["concepts"].items():
                concept = by_key.get(key)
                if concept is None:
                    self.explain(trainer, path, left["identity"])
                elif best.get(concept, 0) < left["steps"] <= data.steps_per_concept:
                    best[concept] = left["steps"]
                    lora = {
                        name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")
                    }
                    module.resume(concept, ConceptState(left["steps"], left["losses"], lora))
        trainer.strategy.barrier("all have read what was saved")  # before another rank writes
        if best and trainer.is_global_zero:
            resumed = ", ".join(f"{data.concepts[c].target} ({steps} steps)" for c, steps in best.items())
            screen().print(f"Resuming what {self.folder} holds: {resumed}", highlight=False)

    def explain(self, trainer: Trainer, path: Path, stored: dict[str, str]) -> None:
        """Say why a saved concept is not resumed."""
        same = [content for content in self.identities.values() if content["target"] == stored.get("target")]
        if trainer.is_global_zero:
            not_taken(f"{stored.get('target')}", path, differing(stored, same[0]) if same else ["targets"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the group of this step, at its last step and now and then before."""
        module = cast(ErasureModule, pl_module)
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        steps = batch["step"] + 1
        shared = trainer.global_rank != min(module.share.ranks, default=0)  # another rank writes it
        if not batch["concepts"] or shared:
            return
        if steps % self.every_n_steps and steps < data.steps_per_concept:
            self.pending = batch
        else:
            self.save(trainer, module, batch)

    def save(self, trainer: Trainer, module: ErasureModule, batch: Any) -> None:
        """Write what the group of a batch has after its step."""
        self.pending = None
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        tensors: dict[str, Tensor] = {}
        left = {}
        for concept in batch["concepts"]:
            key, state = identity(self.identities[concept]), module.state_of(concept)
            tensors |= {f"{key}.{name}": tensor for name, tensor in state.tensors.items()}
            saved = {"target": data.concepts[concept].target, "steps": state.steps, "losses": state.losses}
            left[key] = saved | {"identity": self.identities[concept]}
        name = slug(data.concepts[batch["concepts"][0]].target)
        write_tensors(self.folder / f"{name}.safetensors", tensors, KIND, {"concepts": left})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step of a run that was stopped, before the module refuses to fuse it."""
        if self.pending is not None:
            self.save(trainer, cast(ErasureModule, pl_module), self.pending)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last step where a cluster tells the run to end, which shows between two steps."""
        if self.pending is not None and isinstance(exception, SIGTERMException):
            self.save(trainer, cast(ErasureModule, pl_module), self.pending)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run is written: what it saved for resuming, or resumed, is not needed any more."""
        if trainer.is_global_zero:
            data: RunData = trainer.datamodule  # type: ignore[attr-defined]
            for path in filter(self.is_own, self.folder.glob("[!.]*.safetensors")):
                path.unlink(missing_ok=True)
            for target in [data.concepts[concept].target for concept in self.identities]:
                clear_leftovers(self.folder / f"{slug(target)}.safetensors")
            with contextlib.suppress(OSError):  # other files stay, and the folder with them
                self.folder.rmdir()

    def is_own(self, path: Path) -> bool:
        """Whether a file holds a concept that this run trained with the same inputs, on whatever rank."""
        with contextlib.suppress(UserError, ValueError):  # a damaged file, which no run of ours left as it is
            saved = read_metadata(path, "output_dir").get("concepts", {})
            return not {identity(content) for content in self.identities.values()}.isdisjoint(saved)
        return False
