"""Ranks that share the images of a concept: each image once, the result that of a single rank."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.forks import Forked, ranks
from support.runs import CONCEPTS, SCRIPT, config, exit_message, nodes, saved, train
from support.tolerances import RUN_MOVED, RUN_WEIGHTS, above, close
from torch import Tensor

from mace_pl.cli import erase_main
from mace_pl.training.sharding import share_of

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--save_pipeline", "false"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
STEPS = 24


@pytest.mark.parametrize(("world", "concepts", "images"), [(1, 3, 2), (2, 8, 1), (5, 2, 1), (5, 2, 2), (7, 2, 9)])
def test_every_image_of_every_concept_is_trained_once(world: int, concepts: int, images: int) -> None:
    shares = [share_of(rank, world, concepts, images) for rank in range(world)]
    trained = [(c, i) for share in shares for c in share.concepts for i in share.images]
    assert sorted(trained) == [(c, i) for c in range(concepts) for i in range(images)]
    for rank, share in enumerate(shares):
        assert (rank in share.ranks) == bool(share.concepts)
        assert all(shares[other].concepts == share.concepts for other in share.ranks)
    if world > concepts:
        working = sum(bool(share.concepts) for share in shares)
        assert working == sum(min(images, len(range(c, world, concepts))) for c in range(concepts))


def test_two_ranks_share_the_images_of_a_step(toy_pipeline: Path, tmp_path: Path) -> None:
    """Three images on two ranks, one concept; a run in groups of two concepts does not differ either."""
    settings = {"images_per_step": 3, "concepts_per_batch": 2}
    one = train(toy_pipeline, tmp_path / "pictures", CONCEPTS[:1], settings)
    args = [*config(tmp_path, toy_pipeline, "two", CONCEPTS[:1], **settings), *TWO, "--images_every_n_steps", "2"]
    args += ["--report_seeds", "0"]
    for done in ranks(SCRIPT, args):
        assert done.returncode == 0, done.stderr[-3000:]
    shared = load_file(tmp_path / "two" / "refined.safetensors")
    assert [file.name for file in (tmp_path / "two" / "report" / "steps").iterdir()] == ["000002.png"]
    for name in one.refined.original:
        weight = one.unet.get_submodule(name).weight
        close(shared[f"{name}.weight"], weight.detach(), RUN_WEIGHTS)
    single = train(toy_pipeline, tmp_path / "pictures", CONCEPTS[:1], {**settings, "images_per_step": 1})
    above(
        max(
            (one.trained.factors["ship"][n][1] - single.trained.factors["ship"][n][1]).abs().max()
            for n in one.refined.original
        ),
        RUN_MOVED,
    )
    groups = [
        train(toy_pipeline, tmp_path / "pictures", CONCEPTS[:2], {**settings, "concepts_per_batch": k}) for k in (1, 2)
    ]
    for name in one.refined.original:
        weights = [module.unet.get_submodule(name).weight.detach() for module in groups]
        close(*weights, RUN_WEIGHTS)


def test_fewer_images_than_one_are_refused(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = exit_message(config(tmp_path, toy_pipeline, "none", images_per_step=0), capsys)
    assert "data.images_per_step=0 must be at least 1" in message
    assert not (tmp_path / "none").exists()


def second_process(args: list[str]) -> tuple[list[Forked], Callable[[], int]]:
    """Two processes of one command, which starts the second; how to find that."""
    first = Forked(SCRIPT, [*args, *TWO], ONE_THREAD)

    def find() -> int:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        return next(int(c) for c in children if str(SCRIPT) in Path(f"/proc/{c}/cmdline").read_text())

    return [first], find


def second_node(args: list[str]) -> tuple[list[Forked], Callable[[], int]]:
    """Two nodes of a process each."""
    started = nodes(args, 2)
    return started, lambda: started[1].pid


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs find the same images."""
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def whole(toy_pipeline: Path, place: Path) -> dict[str, Tensor]:
    """What a run learns of which no process dies."""
    erase_main(four(place, toy_pipeline, "whole"))
    return load_file(place / "whole" / "refined.safetensors")


def four(place: Path, pipeline: Path, name: str) -> list[str]:
    """A run of as many concepts."""
    concepts = [*CONCEPTS, {"target": "cat", "anchor": "sky", "kind": "object"}]
    args = config(place, pipeline, name, concepts, steps_per_concept=STEPS, concepts_per_batch=1)
    return [*args, "--keep_every_n_steps", "4", "--save_pipeline", "false", "--report_seeds", "0"]


@pytest.mark.parametrize("start", [second_process, second_node])
def test_a_process_that_dies_takes_no_finished_concept_along(
    toy_pipeline: Path,
    place: Path,
    whole: dict[str, Tensor],
    capsys: pytest.CaptureFixture[str],
    start: Callable[[list[str]], tuple[list[Forked], Callable[[], int]]],
) -> None:
    """The second of two is killed while it trains its last concept; a single process resumes with what both had."""
    name = f"killed_{start.__name__}"
    args, work = four(place, toy_pipeline, name), place / f".{name}.training"
    started, second = start(args)
    try:
        while not (work / "cat.safetensors").is_file():
            assert all(p.poll() is None for p in started), "the run ended before its second process could be killed"
            time.sleep(0.002)
        os.kill(second(), signal.SIGKILL)
        started[0].process.join(timeout=120)
    finally:
        codes = [process.poll() for process in started]
        for process in started:
            process.kill()
    assert codes[0] not in (0, None) and not (place / name).exists()
    done = saved(work)
    assert done["painter"] == STEPS and 0 < done["cat"] < STEPS and done["ship"] > 0
    capsys.readouterr()
    erase_main(args)
    assert f"painter ({STEPS} steps)" in " ".join(capsys.readouterr().out.split())
    resumed = load_file(place / name / "refined.safetensors")
    for key in whole:
        close(whole[key], resumed[key], RUN_WEIGHTS)
