"""What the tests of whole runs share: a configuration, images, statistics, checksums, messages."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback
from lightning.pytorch.callbacks import TQDMProgressBar
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mace_pl.cli import erase_main
from mace_pl.concepts.preservation import StageWeights
from mace_pl.data.concepts import ConceptData
from mace_pl.files.artifacts import provenance
from mace_pl.files.leftovers import beside
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.training.trainer import MaceTrainer
from support.forks import Forked

CONCEPTS = [
    {"target": "ship", "anchor": "ground", "kind": "object"},
    {"target": "painter", "anchor": "art", "kind": "style"},
    {"target": "dog", "anchor": "sky", "kind": "object"},
]


SCRIPT = Path(__file__).resolve().parents[2] / "erase.py"


def nodes(args: list[str], count: int) -> list[Forked]:
    """The same command on nodes of a process each, as a cluster starts them; all of them are this machine."""
    more = ["--trainer.devices", "1", "--trainer.num_nodes", str(count), "--trainer.strategy", "ddp"]
    return started([*args, *more, "--save_pipeline", "false"], [{"NODE_RANK": str(rank)} for rank in range(count)])


def launched(args: list[str], count: int) -> list[Forked]:
    """The same command in several processes, as torchrun starts them."""
    world = {"WORLD_SIZE": str(count)}
    return started(args, [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)])


def started(args: list[str], own: list[dict[str, str]]) -> list[Forked]:
    """The same command once for each set of variables, all of which meet at one port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    return [Forked(SCRIPT, args, shared | variables) for variables in own]


def checksums(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


def leftover(output: Path, kind: str = "partial") -> Path:
    """Where a process that is no more has written an output aside, or has put away what it would replace."""
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    own = beside(output, kind)
    return own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-"))


def content_hash(file: Path) -> str:
    """What the specification of metadata calls the hash of a safetensors file: SHA-256 of all behind the header."""
    content = file.read_bytes()
    return "0x" + hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def naming(folder: Path, place: Path, *typed: str) -> list[str]:
    """The files in a folder that name a place of this machine; ``typed`` are those in which the user's words stay.

    A log names places where the seed makes it say something.
    """
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in (*typed, "run.log")]
    assert files
    return [str(file) for file in files if str(place).encode() in file.read_bytes()]


def config(folder: Path, pipeline: Path, name: str, concepts: object = None, **data: object) -> list[str]:
    path = folder / f"{name}.yaml"
    content = {
        "model": {"pretrained": str(pipeline), "lr": 0.01, "refine": {"identity": 1.0}, "fuse": {"identity": 1.0}},
        "data": {
            "concepts": CONCEPTS if concepts is None else concepts,
            "pictures": str(folder / "pictures"),
            "images_per_concept": 2,
            "image_steps": 2,
            "image_guidance": 7.5,
            "steps_per_concept": 3,
            **data,
        },
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "output_dir": str(folder / name),
    }
    path.write_text(yaml.safe_dump(content))
    return ["fit", "--config", str(path)]


def train(
    pipeline: Path,
    images: Path,
    concepts: list[dict[str, str]] = CONCEPTS,
    data: dict[str, object] | None = None,
    trainer: dict[str, object] | None = None,
    **model: object,
) -> ConceptErasure:
    """All stages without files but the images; the module keeps losses, LoRAs and the edited UNet."""
    weights = {"refine": StageWeights(identity=1.0), "fuse": StageWeights(identity=1.0)}
    module = ConceptErasure(str(pipeline), lr=0.01, **weights | model)
    settings = {"images_per_concept": 2, "image_steps": 2, "steps_per_concept": 3} | (data or {})
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    quiet |= {"enable_model_summary": False, "max_epochs": 1}
    MaceTrainer(**quiet | (trainer or {})).fit(
        module, datamodule=ConceptData(concepts, pictures=str(images), **settings)
    )
    return module


def exit_message(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        erase_main(args)
    assert stop.value.code not in (0, None)
    said = capsys.readouterr().err.splitlines(keepends=True)
    return str(stop.value.code) + "".join(line for line in said if not line.endswith(": loading …\n"))


def user_images(folder: Path, sizes: list[int], masks: list[tuple[int, int]]) -> dict[str, str]:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new("RGB", (size, size), "red").save(folder / "images" / f"{i}.png")
    for i, (size, value) in enumerate(masks):
        Image.new("L", (size, size), value).save(folder / "masks" / f"{i}.png")
    return {"target": "ship", "anchor": "sky", "images": str(folder / "images"), "masks": str(folder / "masks")}


def statistics(path: Path, encoder: str, sums: torch.Tensor) -> Path:
    """A file of statistics; as another program may have written it, which checks nothing."""
    header = {"format": "pt", **provenance("statistics", {"encoder": encoder, "tokens": 77})}
    save_file({"gram": sums}, path, metadata=header)
    return path


class Stop(Callback):
    """Ends a training early, as a user's callback may, or as Ctrl+C does."""

    def __init__(self, after: int, interrupt: bool = False) -> None:
        self.after, self.interrupt = after, interrupt

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if batch_idx + 1 == self.after:
            if self.interrupt:
                raise KeyboardInterrupt
            trainer.should_stop = True


class Fails(Callback):
    """A fault in the middle of ``predict``."""

    def on_predict_batch_end(self, *_: object) -> None:
        raise ArithmeticError("nothing that a user can mend")


class Meanwhile(Callback):
    """Another command writes the run's folder while this one trains."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        self.folder.mkdir()
        (self.folder / "edit.safetensors").write_bytes(b"of another run")


class Passes(Callback):
    """Counts the latents that the UNet was given, and goes before the callbacks that generate."""

    latents = 0

    def setup(self, trainer, pl_module, stage: str) -> None:  # type: ignore[no-untyped-def]
        Passes.latents = 0
        pl_module.unet.register_forward_pre_hook(self.count)

    @staticmethod
    def count(network: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        Passes.latents += len(args[0])


class Unpackaged(Callback):
    """Wants a package that is nowhere, as a logger of Lightning does that was not installed."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("Requirement 'nowhere' is not met.\nTry `pip install nowhere`.")


class Bar(TQDMProgressBar):
    """A user's own progress bar, which counts the steps that it was shown."""

    steps = 0

    def on_train_batch_end(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        Bar.steps += 1
        super().on_train_batch_end(*args, **kwargs)


def saved(work: Path) -> dict[str, int]:
    """Steps by target."""
    steps = {}
    for file in work.glob("[!.]*.safetensors"):
        with safe_open(str(file), framework="pt") as opened:
            groups = json.loads(opened.metadata()["mace_pl"])["concepts"].values()
        steps |= {left["target"]: left["steps"] for left in groups}
    return steps
