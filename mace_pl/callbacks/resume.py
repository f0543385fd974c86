"""Keep what stage 2 has trained beside the output folder, so that a killed run goes on where it was."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from mace_pl.artifacts import read_tensors, slug, write_tensors
from mace_pl.errors import UserError
from mace_pl.screen import screen

KIND = "training"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state beside the step


class Resume(Callback):
    """One file per group of concepts: LoRAs, the optimizer's moments and losses, written aside and renamed.

    The files go into ``.<name>.training`` beside the output folder and are removed when the run is written. A concept
    is taken over only where everything that its training depends on is the same, so a changed setting starts it anew.
    The weights are those of an unbroken run: bit for bit in the same groups, to float32 rounding in others.

    Args:
        output_dir: the run's folder.
        every_n_steps: a group that is being trained is kept every so many steps; finished ones always are.

    Raises:
        UserError: ``every_n_steps`` is below 1.
    """

    def __init__(self, output_dir: str, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise UserError(f"keep_every_n_steps={every_n_steps} must be at least 1.")
        output = Path(output_dir)
        self.folder = output.with_name(f".{output.name}.training")
        self.every_n_steps = every_n_steps
        self.keys: dict[int, str] = {}
        self.pending: Any = None  # the last batch that was trained, where it is not kept yet

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over what an interrupted run has left."""
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.keys = {concept: module.training_key(concept) for concept in range(len(module.concepts))}
        own = set(data.own_concepts())
        places = {key: concept for concept, key in self.keys.items()}
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            tensors, meta = read_tensors(path, KIND, "output_dir")
            for key, left in meta["concepts"].items():
                concept = places.get(key)
                if concept is not None and data.done.get(concept, 0) < left["steps"] <= data.steps_per_concept:
                    data.done[concept] = left["steps"]  # of all processes: their schedules have one length
                    if concept in own:
                        self.restore(module, trainer.optimizers[0], concept, key, tensors, left)
        trainer.strategy.barrier("all have read what was kept")  # before another process writes
        if data.done and trainer.is_global_zero:
            found = ", ".join(f"{module.concepts[c].target} ({steps} steps)" for c, steps in data.done.items())
            screen().print(f"Going on with what {self.folder} holds: {found}", highlight=False)

    def restore(
        self,
        module: Any,
        optimizer: torch.optim.Optimizer,
        concept: int,
        key: str,
        tensors: Mapping[str, Tensor],
        left: Mapping[str, Any],
    ) -> None:
        """Put a concept's LoRA, moments and losses back."""
        for i, parameter in enumerate(module.loras.parameters_of(concept)):
            parameter.data.copy_(tensors[f"{key}.{i}"])
            moments = {m: tensors[f"{key}.{i}.{m}"] for m in MOMENTS if f"{key}.{i}.{m}" in tensors}
            if moments:
                step = torch.tensor(float(left["steps"]))
                optimizer.state[parameter] = {"step": step, **{m: t.to(parameter.device) for m, t in moments.items()}}
        module.losses[module.concepts[concept].target] = list(left["losses"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the group of this step, at its last step and now and then before."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        steps = batch["step"] + 1
        shared = trainer.global_rank != min(data.share().ranks, default=0)  # another process writes it
        if not batch["concepts"] or shared:
            return
        if steps % self.every_n_steps and steps < data.steps_per_concept:
            self.pending = batch
        else:
            self.keep(trainer, pl_module, batch)

    def keep(self, trainer: Trainer, module: Any, batch: Any) -> None:
        """Write what the group of a batch has after its step."""
        self.pending = None
        state = trainer.optimizers[0].state
        tensors: dict[str, Tensor] = {}
        left = {}
        for concept in batch["concepts"]:
            key = self.keys[concept]
            for i, parameter in enumerate(module.loras.parameters_of(concept)):
                tensors[f"{key}.{i}"] = parameter
                if parameter in state:  # the values of the last layer reach no loss and are never stepped
                    tensors |= {f"{key}.{i}.{m}": state[parameter][m] for m in MOMENTS}
            target = module.concepts[concept].target
            left[key] = {"target": target, "steps": batch["step"] + 1, "losses": module.losses[target]}
        name = slug(module.concepts[batch["concepts"][0]].target)
        write_tensors(self.folder / f"{name}.safetensors", tensors, KIND, {"concepts": left})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last step of a run that was stopped, before the module refuses to fuse it."""
        if self.pending is not None:
            self.keep(trainer, pl_module, self.pending)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the last step where a cluster tells the run to end, which shows between two steps."""
        if self.pending is not None and isinstance(exception, SIGTERMException):
            self.keep(trainer, pl_module, self.pending)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run is written: what was kept for going on is not needed any more."""
        if trainer.is_global_zero:
            for path in self.folder.glob("*.safetensors"):
                path.unlink()
            for left in self.folder.glob(".*.partial"):  # of a process that was killed
                left.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other files stay, and the folder with them
                self.folder.rmdir()
