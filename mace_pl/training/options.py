"""Which options of the Trainer a command takes, and whether a training did all that it was to do.

A run that does less than its settings say would pass for a whole one, so what cuts it short is refused before anything
is generated. A limit of time may end a training: then no edit is written, and the same command resumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from mace_pl.errors import UserError
from mace_pl.training.trainer import gathered

Command = Literal["fit", "cache", "predict", "test", "attack"]

_STEPS = "--data.steps_per_concept says how long each concept is trained"
_CLIP = "--model.gradient_clip bounds the gradient of each concept on its own"
_NO_TRAINING = "it belongs to training, and nothing is trained here"

Options = dict[str, tuple[tuple[Any, ...], str]]
_FIT: Options = {
    "fast_dev_run": ((0,), "--data.steps_per_concept 1 and --data.images_per_concept 1 give a short run"),
    "overfit_batches": ((0, 0.0), _STEPS),
    "max_epochs": ((1,), f"the training is one epoch of all steps, and {_STEPS}"),
    "min_epochs": ((None, 0, 1), f"the training is one epoch of all steps, and {_STEPS}"),
    "max_steps": ((-1,), _STEPS),
    "min_steps": ((None, 0), _STEPS),
    "limit_train_batches": ((1.0,), _STEPS),
    "accumulate_grad_batches": ((1,), "--data.images_per_step averages each step over so many images"),
    "gradient_clip_val": ((None, 0, 0.0), _CLIP),
    "gradient_clip_algorithm": ((None,), _CLIP),
}


def _whole(limit: str, fewer: str) -> Options:
    """What a command does not take that goes through all of its data once."""
    return {"fast_dev_run": ((0,), fewer), limit: ((1.0,), fewer), "max_steps": ((-1,), _NO_TRAINING)}


#: by command and option: the values that change nothing, and what to give in place of others
OPTIONS: dict[Command, Options] = {
    "fit": _FIT,
    "cache": _whole("limit_predict_batches", "--data.limit takes fewer captions"),
    "predict": _whole("limit_predict_batches", "--data.limit takes fewer prompts"),
    "test": _whole("limit_test_batches", "--data.seeds takes fewer images of each name"),
    "attack": _whole("limit_test_batches", "--data.seeds and --data.attacks take fewer images"),
}
_MIXED = ("32-true", "bf16-mixed", "16-mixed")
PRECISIONS: dict[Command, tuple[str, ...]] = {
    "fit": _MIXED,
    "cache": (*_MIXED, "64-true", "bf16-true", "16-true"),
    "predict": _MIXED,
    "test": _MIXED,
    "attack": _MIXED,
}
ENVIRONMENTS: dict[type[ClusterEnvironment], str] = {
    SLURMEnvironment: "SLURM_NTASKS (ntasks of the job)",
    TorchElasticEnvironment: "WORLD_SIZE (of torchrun)",
}


def check_trainer(trainer: Trainer, command: Command) -> None:
    """Refuse options of the Trainer that would cut a command short or change what it does.

    Raises:
        UserError: naming the option, its value, and what to give instead.
    """
    for name, (allowed, instead) in OPTIONS[command].items():
        value = getattr(trainer, name)
        if not any(value == plain and isinstance(value, type(plain)) for plain in allowed):  # a limit of 1 is no 1.0
            raise UserError(f"trainer.{name}={value} cannot be used with {command}. Leave it out: {instead}.")
    if command != "fit" and any(isinstance(callback, Timer) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise UserError(f"trainer.max_time cannot be used with {command}. Leave it out: {_NO_TRAINING}.")
    if trainer.precision not in PRECISIONS[command]:
        choices = ", ".join(PRECISIONS[command])
        raise UserError(f"trainer.precision={trainer.precision} cannot be used with {command}. Use one of {choices}.")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            f"trainer.strategy={type(trainer.strategy).__name__} cannot be used: each device holds the whole model. "
            f"Use ddp, or auto."
        )
    check_processes(trainer)


def check_processes(trainer: Trainer) -> None:
    """Refuse another number of ranks than the cluster or launcher has started.

    Raises:
        UserError: they would wait for each other, or each would do all the work.
    """
    for environment, variable in ENVIRONMENTS.items():
        started = environment().world_size() if environment.detect() else trainer.world_size
        if started != trainer.world_size:
            raise UserError(
                f"{variable} says that {started} processes were started, trainer.devices={trainer.num_devices} and "
                f"trainer.num_nodes={trainer.num_nodes} want {trainer.world_size}. Start one process for each device, "
                f"and pass --trainer.strategy ddp for more than one."
            )


def check_whole(trainer: Trainer, planned: int, targets: Sequence[str], losses: Mapping[str, Sequence[float]]) -> None:
    """Refuse to fuse after a training that was stopped. All ranks call this together.

    Args:
        trainer: the Trainer.
        planned: steps of each target.
        targets: those of this rank.
        losses: one for each step of a target.

    Raises:
        UserError: naming what stopped it.
    """
    every: dict[str, int] = {}
    for counts in gathered(trainer, {target: len(losses.get(target, ())) for target in targets}):
        every |= counts
    short = {target: count for target, count in every.items() if count < planned}
    if not short:
        return
    limits = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    cause = "trainer.max_time" if limits else "a callback in trainer.callbacks"
    target, count = next(iter(short.items()))
    more = f" (and {len(short) - 1} more)" if len(short) > 1 else ""
    raise UserError(
        f"{cause} stopped the training at {count} of {planned} steps of {target!r}{more}. No edit is written. What was "
        f"trained is saved: the same command resumes."
    )
