"""The wheel, installed into a folder of its own: its console commands run from any folder, with what is bundled."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from importlib.metadata import entry_points; "
CODE += "(found,) = entry_points(group='console_scripts', name=sys.argv.pop(1)); found.load()()"
needs_hatchling = pytest.mark.skipif(find_spec("hatchling") is None, reason="the wheel is built by hatchling")
pytestmark = [pytest.mark.slow, needs_hatchling]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the package."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    more = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *more, "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    (wheel,) = wheels.glob("mace_pl-*.whl")
    install = [*pip, "install", *more, "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=600)
    return target


def run(installed: Path, place: Path, *command: str) -> str:
    """What a program prints in another folder, where no checkout is on the path before the installed package."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_console_command_runs_from_another_folder_with_a_bundled_config(installed: Path, tmp_path: Path) -> None:
    printed = run(
        installed,
        tmp_path,
        "-c",
        CODE,
        *["mace-erase", "fit", "--config", "configs/emoji/erase_ship.yaml", "--print_config"],
    )
    found = yaml.safe_load(printed)
    own = yaml.safe_load((ROOT / "configs/emoji/erase_ship.yaml").read_text(encoding="utf-8"))
    assert found["data"]["concepts"] == own["data"]["concepts"]
    assert found["model"]["pretrained"] == own["model"]["pretrained"]
    assert not list(tmp_path.iterdir())


def test_what_is_bundled_lies_in_the_package(installed: Path, tmp_path: Path) -> None:
    code = "import mace_pl; from mace_pl.files.paths import resolve; "
    code += "print(mace_pl.__file__); print(resolve('checkpoints/emoji').resolve())"
    package, model = map(Path, run(installed, tmp_path, "-c", code).split())
    assert package.parent == installed / "mace_pl"
    assert model == installed / "mace_pl/bundled/checkpoints/emoji"
    assert (model / "unet/diffusion_pytorch_model.safetensors").stat().st_size > 2**20
    scripts = {file.name for file in (installed / "bin").iterdir()} if (installed / "bin").is_dir() else set()
    assert {"mace-erase", "mace-train"} <= scripts
    leaves = {path.name for path in installed.iterdir()} - {"bin"}
    assert {name for name in leaves if not name.endswith(".dist-info")} == {"mace_pl"}  # no tests, docs or scripts
