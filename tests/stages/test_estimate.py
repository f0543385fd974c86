"""What the pre-flight says a run takes is what it then takes: within a factor of two, on a quiet machine."""

import time
from pathlib import Path

import pytest
from lightning import Callback, LightningModule, Trainer
from support.runs import CONCEPTS, config, train

from mace_pl.cli import erase_main
from mace_pl.data.concepts import ConceptData
from mace_pl.files.paths import resolve
from mace_pl.methods.mace import Mace
from mace_pl.models.pipeline import load_pipeline
from mace_pl.stages.estimate import Estimator, Planned
from mace_pl.training.memory import LiveBytes

WORK = {"images_per_concept": 4, "image_steps": 10, "steps_per_concept": 40}
LESS = {"images_per_concept": 2, "image_steps": 5, "steps_per_concept": 20}  # of the bundled model, which takes longer
FACTOR = 2
BUSY = 4  # of time: two processes on one core's two threads take twice the processor time of one


class Stamps(Callback):
    """Seconds of this process before stage 1, before and after the training; and what lives while it lasts."""

    def __init__(self, live: LiveBytes | None = None) -> None:
        self.times: list[float] = []
        self.live = live

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.times.append(time.process_time())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.process_time())
        if self.live is not None:
            self.live.__enter__()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.process_time())
        if self.live is not None:
            self.live.__exit__(None, None, None)


def planned(pictures: Path, work: dict[str, int] = WORK) -> Planned:
    return Planned(ConceptData(CONCEPTS, pictures=str(pictures), **work), Mace(), 1, 2024, names=0, shown=0)


@pytest.mark.parametrize("model", ["toy", pytest.param("bundled", marks=pytest.mark.bundled)])
def test_time_and_memory_are_about_those_of_the_run(model: str, toy_pipeline: Path, tmp_path: Path) -> None:
    base, work = (toy_pipeline, WORK) if model == "toy" else (resolve("checkpoints/emoji"), LESS)
    train(base, tmp_path / "warm")  # what is loaded and compiled at the first run is no part of a stage
    found = Estimator(load_pipeline(str(base)), planned(tmp_path / "images", work), time.process_time).stages()
    seconds = {one.stage: one.taken.seconds for one in found}
    stamps = Stamps()
    train(base, tmp_path / "images", data=work, trainer={"callbacks": [stamps]})
    start, trained, end = stamps.times
    for estimated, taken in (
        (seconds["refine"] + seconds["prepare"], trained - start),
        (seconds["train"], end - trained),
    ):
        assert taken / BUSY < estimated < taken * BUSY, (estimated, taken)
    live = LiveBytes()
    train(base, tmp_path / "images", data=work | {"steps_per_concept": 2}, trainer={"callbacks": [Stamps(live)]})
    size = next(one.taken.bytes for one in found if one.stage == "train")
    assert live.peak / FACTOR < size < live.peak * FACTOR, (size, live.peak)


def test_disk_is_that_of_the_run_within_a_factor_of_two(toy_pipeline: Path, tmp_path: Path) -> None:
    erase_main([*config(tmp_path, toy_pipeline, "run", **WORK), "--report_seeds", "0"])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    taken = sum(file.stat().st_size for file in files if file.suffix != ".png" or "report" not in file.parts)
    needed = Estimator(load_pipeline(str(toy_pipeline)), planned(tmp_path / "others")).disk()
    assert taken / FACTOR < needed < taken * FACTOR, (needed, taken)
    there = Estimator(load_pipeline(str(toy_pipeline)), planned(tmp_path / "pictures"))
    assert there.missing == 0 and "prepare" not in [one.stage for one in there.stages()]


def test_a_dry_run_says_what_will_go_wrong_and_writes_nothing(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concepts = [{"target": "ship", "anchor": "ground"}, {"target": "dog's", "anchor": "sky"}]
    args = [*config(tmp_path, toy_pipeline, "run", concepts), "--dry_run", "true"]
    more = ["--model.domain_names", "[dog 's, house]", "--model.refine.domain", "1"]
    erase_main([*args, *more])
    said = " ".join(capsys.readouterr().out.split())
    for part in ("estimated", "refine", "train", "MB at most", "shares", "the run was dry"):
        assert part in said
    assert "has the tokens of the target" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.yaml"]
    with pytest.raises(SystemExit, match="refine: the system is singular"):
        erase_main([*args, "--model.method", "UCE", "--model.refine.identity", "0"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.yaml"]
