"""Toy models made once per session, and random numbers that no other test and no other process changes."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import toys
from seeds import seed_generators


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
    seed_generators(f"{fixturedef.argname}{getattr(request, 'param_index', 0)}")
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Nor do those of a test."""
    seed_generators(item.nodeid)
    return (yield)
