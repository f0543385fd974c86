"""Options that a command cannot take are refused before anything is made, and a run that is stopped is no whole one."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from support.forks import Forked
from support.runs import SCRIPT, Bar, config

from mace_pl import erase
from mace_pl.cli import erase_main
from mace_pl.commands.explained import missing_package
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.training.options import OPTIONS

SHIP = [{"target": "ship", "anchor": "ground"}]
CLUSTER = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NAME": "erase",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
}


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a refusal, which is one line."""
    with pytest.raises(SystemExit) as stop:
        erase_main(args)
    message = str(stop.value.code)
    assert message.startswith("erase.py") and ": error: " in message and "\n" not in message
    assert "Traceback" not in capsys.readouterr().err
    return message


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("fast_dev_run", "true", "data.steps_per_concept"),
        ("overfit_batches", "1", "data.steps_per_concept"),
        ("max_epochs", "2", "data.steps_per_concept"),
        ("min_epochs", "2", "data.steps_per_concept"),
        ("max_steps", "2", "data.steps_per_concept"),
        ("min_steps", "2", "data.steps_per_concept"),
        ("limit_train_batches", "1", "data.steps_per_concept"),
        ("limit_train_batches", "0.5", "data.steps_per_concept"),
        ("accumulate_grad_batches", "2", "data.images_per_step"),
        ("gradient_clip_val", "0.5", "model.gradient_clip"),
        ("gradient_clip_algorithm", "value", "model.gradient_clip"),
        ("precision", "16-true", "bf16-mixed"),
        ("precision", "64-true", "32-true"),
        ("devices", "0", "devices"),
        ("strategy", "fsdp", "GPU"),
        ("accelerator", "nothing", "cpu"),
    ],
)
def test_an_option_that_training_cannot_take_is_refused(
    tmp_path: Path, toy_pipeline: Path, option: str, value: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*config(tmp_path, toy_pipeline, "out", SHIP), f"--trainer.{option}", value]
    message = refused(args, capsys)
    assert f"trainer.{option}" in message and instead in message
    assert [path.name for path in tmp_path.iterdir()] == ["out.yaml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*config(tmp_path, toy_pipeline, "out", SHIP), "--trainer.accelerator", "gpu"]
    assert "trainer.accelerator=gpu" in refused(args, capsys)


@pytest.mark.parametrize("per_node", [None, "4"], ids=["tasks alone", "tasks per node"])
def test_other_tasks_of_a_cluster_than_devices_are_refused(
    tmp_path: Path,
    toy_pipeline: Path,
    per_node: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in CLUSTER.items() if per_node is None else [*CLUSTER.items(), ("SLURM_NTASKS_PER_NODE", per_node)]:
        monkeypatch.setenv(name, value)
    message = refused([*config(tmp_path, toy_pipeline, "out", SHIP), "--trainer.devices", "1"], capsys)
    assert "ntasks" in message
    assert not (tmp_path / "pictures").exists()


def test_other_processes_of_torchrun_than_devices_are_refused(
    tmp_path: Path, toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"TORCHELASTIC_RUN_ID": "7", "RANK": "0", "GROUP_RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    message = refused([*config(tmp_path, toy_pipeline, "out", SHIP), "--trainer.devices", "1"], capsys)
    assert "WORLD_SIZE" in message and "trainer.devices=1" in message


@pytest.mark.parametrize("command", ["cache", "predict", "test", "attack"])
@pytest.mark.parametrize("option", ["fast_dev_run", "limit", "max_time", "max_steps", "precision", "ckpt_path"])
def test_a_command_that_goes_through_its_data_once_is_never_cut_short(
    tmp_path: Path, toy_pipeline: Path, toy_clip: Path, command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text("a ship\na dog\nart\n", "utf-8")
    output = tmp_path / {"cache": "out.safetensors", "predict": "out"}.get(command, "out.json")
    own = {
        "cache": ["--data.sources", f"[{tmp_path / 'captions.txt'}]"],
        "predict": ["--data.names", "[ship, dog]"],
        "test": ["--data.names", "[ship, dog]", "--model.classifier", str(toy_clip)],
        "attack": [
            *["--data.names", "[ship, dog]", "--data.targets", "[ship]", "--model.classifier", str(toy_clip)],
            *["--model.edited", str(toy_pipeline)],
        ],
    }[command]
    name = next(name for name in OPTIONS[command] if name.startswith("limit")) if option == "limit" else option  # type: ignore[index]
    value = {"fast_dev_run": "true", "max_time": "00:00:00:01", "precision": "transformer-engine"}.get(option, "1")
    args = [command, "--model.pretrained", str(toy_pipeline), "--model.output", str(output), *own]
    args += [f"--{name}" if name == "ckpt_path" else f"--trainer.{name}", value]
    message = refused([*args, "--trainer.accelerator", "cpu", "--trainer.logger", "false"], capsys)
    assert name in message
    assert [path.name for path in tmp_path.iterdir()] == ["captions.txt"]


def test_a_class_whose_package_is_not_installed_is_named(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run", SHIP)
    message = refused([*args, "--trainer.callbacks+", "support.runs.Unpackaged"], capsys)
    assert "support.runs.Unpackaged wants a package that is not installed. Requirement 'nowhere'" in message


def test_a_logger_whose_package_is_not_installed_names_the_extra() -> None:
    error = ValueError("class_path 'lightning.pytorch.loggers.TensorBoardLogger'")
    error.__cause__ = ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")
    assert 'Run pip install "mace-pl[logging]".' in str(missing_package(error))


def test_a_plain_trainer_that_repeats_the_schedule_is_refused(tmp_path: Path, toy_pipeline: Path) -> None:
    from lightning import Trainer

    from mace_pl.data.concepts import ConceptData

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs=1000"):
        trainer.fit(
            ConceptErasure(str(toy_pipeline)), datamodule=ConceptData(SHIP, pictures=str(tmp_path / "pictures"))
        )
    assert not (tmp_path / "pictures").exists()


def stopped(folder: Path, pipeline: Path, name: str, **stop: object) -> list[str]:
    """A run of six steps with a callback that ends it early."""
    args = config(folder, pipeline, name, SHIP, steps_per_concept=6)
    callbacks = [{"class_path": "support.runs.Stop", "init_args": stop}]
    return [*args, "--save_pipeline", "false", "--trainer.callbacks", json.dumps(callbacks)]


def steps_kept(folder: Path) -> dict[str, int]:
    found = {}
    for file in folder.glob("[!.]*.safetensors"):
        with safe_open(str(file), framework="pt") as opened:
            groups = json.loads(opened.metadata()["mace_pl"])["concepts"].values()
        found |= {left["target"]: left["steps"] for left in groups}
    return found


def test_a_stopped_run_writes_no_edit_and_resumes_at_its_last_step(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = config(tmp_path, toy_pipeline, "whole", SHIP, steps_per_concept=6)
    erase_main([*whole, "--save_pipeline", "false"])
    message = refused(stopped(tmp_path, toy_pipeline, "cut", after=4), capsys)
    assert "4 of 6 steps of 'ship'" in message and "the same command resumes" in message
    assert not (tmp_path / "cut").exists()
    assert steps_kept(tmp_path / ".cut.training") == {"ship": 4}
    erase_main(stopped(tmp_path, toy_pipeline, "cut", after=4))  # the two that are left
    first, other = (load_file(tmp_path / name / "refined.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[key], other[key]) for key in first)


def test_a_limit_of_time_writes_no_edit(tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = config(tmp_path, toy_pipeline, "out", SHIP, steps_per_concept=100_000)
    message = refused([*args, "--trainer.max_time", "00:00:00:01"], capsys)
    assert "trainer.max_time stopped the training at" in message
    assert not (tmp_path / "out").exists()
    kept = steps_kept(tmp_path / ".out.training").get("ship", 0)  # none where a busy machine needs a second to begin
    assert kept < 100_000


def test_ctrl_c_is_said_on_the_command_line_and_raised_in_python(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    args = stopped(tmp_path, toy_pipeline, "out", after=2, interrupt=True)
    with pytest.raises(SystemExit) as stop:
        erase_main(args)
    assert stop.value.code == 130
    assert "error: interrupted. No edit is written" in capsys.readouterr().err
    settings = yaml.safe_load(Path(args[2]).read_text())
    settings["trainer"]["callbacks"] = json.loads(args[-1])
    with pytest.raises(KeyboardInterrupt):
        erase(**settings)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "out").exists()


def test_a_run_that_a_cluster_ends_is_no_success_and_keeps_its_last_step(tmp_path: Path, toy_pipeline: Path) -> None:
    args = config(tmp_path, toy_pipeline, "out", SHIP, steps_per_concept=100_000)
    process = Forked(SCRIPT, [*args, "--keep_every_n_steps", "7"], {"OMP_NUM_THREADS": "1"})
    while not list((tmp_path / ".out.training").glob("[!.]*.safetensors")):
        assert process.poll() is None, process.wait().stderr
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    done = process.wait(timeout=60)
    assert done.returncode == 143, done.stderr[-2000:]
    assert "error: interrupted. No edit is written. The same command resumes." in done.stderr
    assert not (tmp_path / "out").exists() and steps_kept(tmp_path / ".out.training")["ship"] >= 7


def test_the_users_own_progress_bar_stays(tmp_path: Path, toy_pipeline: Path) -> None:
    path = Path(config(tmp_path, toy_pipeline, "out", SHIP)[2])
    settings = yaml.safe_load(path.read_text())
    settings["trainer"] = {"accelerator": "cpu", "callbacks": [{"class_path": "support.runs.Bar"}]}
    path.write_text(yaml.safe_dump(settings))
    Bar.steps = 0
    erase_main(["fit", "--config", str(path), "--save_pipeline", "false"])
    assert Bar.steps == 3
