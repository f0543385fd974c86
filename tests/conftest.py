"""Toy models made once per session; no test depends on what another one has generated, or has left behind."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its import sets loggers up, which no test is to be blamed for
import pytest
import torch
from support import toys
from support.seeds import seed_generators

LIGHTNINGS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # which seed_everything sets, for the ranks of a run

os.environ["COLUMNS"] = "500"  # no message is broken into lines, however long the path of its temporary folder

# and OpenCV's, and of torch's compiler
IMPORTS = {"PYTEST_CURRENT_TEST", "LD_LIBRARY_PATH", "QT_QPA_PLATFORM_PLUGIN_PATH", "QT_QPA_FONTDIR"}
IMPORTS |= {"_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"}


@pytest.fixture(scope="session")
def toy_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved StableDiffusionPipeline."""
    return toys.pipeline(tmp_path_factory.mktemp("toy") / "pipeline")


@pytest.fixture(scope="session")
def toy_clip(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved CLIPModel over the toy tokenizer."""
    return toys.clip(tmp_path_factory.mktemp("clip"), toy_pipeline)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Draws of a fixture do not depend on what ran before."""
    return (yield from alone(f"{fixturedef.argname}{getattr(request, 'param_index', 0)}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Nor do those of a test."""
    return (yield from alone(item.nodeid))


def alone(name: str) -> Generator[None, object, object]:
    seed_generators(name)
    try:
        return (yield)
    finally:
        for variable in LIGHTNINGS:
            os.environ.pop(variable, None)


def own(thread: threading.Thread) -> bool:
    """Not those of a library's pool, which end when they like."""
    return not thread.daemon and not thread.name.startswith("ThreadPoolExecutor")


def state() -> dict[str, object]:
    """What a test could leave to the next."""
    loggers = [logging.getLogger(name) for name in (None, "lightning.pytorch", "mace_pl")]
    return {
        "environment": {name: value for name, value in os.environ.items() if name not in IMPORTS},
        "working folder": os.getcwd(),
        "sys.path": list(sys.path),
        "type of new tensors": torch.get_default_dtype(),
        "threads of torch": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "handlers of loggers": [handler for logger in loggers for handler in logger.handlers],
        "levels of loggers": [logger.level for logger in loggers],
        "threads": sorted(thread.name for thread in threading.enumerate() if own(thread)),
    }


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Set up first, and so torn down last: when ``monkeypatch`` has put back what it changed."""
    before = state()
    yield
    after = state()
    left = [name for name, value in after.items() if value != before[name]]
    assert not left, {name: differing(before[name], after[name]) for name in left}


def differing(before: Any, after: Any) -> Any:
    """What of a mapping differs, or both values."""
    if not isinstance(before, dict):
        return before, after
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return {name: (before.get(name), after.get(name)) for name in names}
