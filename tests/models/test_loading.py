"""What is exported generates images in other programs, whatever dtype they ask for, under all versions
that such programs run.

``make compat`` installs the versions of ``tests/compat/*.txt`` beside this environment, without a second torch.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.generate import ASKED
from safetensors.torch import load_file
from support.families import family
from support.finished import finished_run
from support.forks import forked
from support.tolerances import BFLOAT16_IMAGE, HALF_IMAGE, OTHER_VERSIONS, below, close

from mace_pl.cli import erase_main
from mace_pl.export.base_model import write_pipeline
from mace_pl.files.paths import resolve
from mace_pl.models.pipeline import load_pipeline, load_with_source

ROOT = Path(__file__).resolve().parents[2]
LISTS = sorted((ROOT / "tests/compat").glob("*.txt"))
HALF = ["torch.float16"]
BFLOAT16, WHOLE = ["torch.bfloat16"], ["torch.float32"]


def python_of(name: str) -> Path:
    """The interpreter that has the versions of a list."""
    python = Path(sys.prefix) / "compat" / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{python} is not there; make compat installs it")
    return python


def exported(folder: Path, base: Path, *more: str, variant: str | None = None) -> Path:
    """The pipeline folder of a finished run on ``base``."""
    run, written = finished_run(folder / "run", base, variant), folder / "pipeline"
    erase_main(["export", "--run", str(run), "--format", "pipeline", "--output", str(written), *more])
    return written


@pytest.fixture(scope="session")
def folders(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported folders of every kind of base, and the bundled model."""
    place = tmp_path_factory.mktemp("loading")
    found = {"bundled": resolve("checkpoints/emoji").resolve()}
    bases = {"sd1": toy_pipeline}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for name in ("sd2_v", "sdxl"):
            bases[name] = place / "bases" / name
            family(name, toy_pipeline).save_pretrained(bases[name])
    for name in ("sd1", "sdxl"):
        half = load_pipeline(str(bases[name])).to(torch.float16)
        bases[f"{name}_half"] = place / "bases" / f"{name}_half"
        half.save_pretrained(bases[f"{name}_half"])
    half = load_pipeline(str(bases["sd1"])).to(torch.float16)
    bases["variant"] = place / "bases" / "variant"
    half.save_pretrained(bases["variant"], variant="fp16", max_shard_size="300KB")
    mixed = load_pipeline(str(bases["sd1"]))
    mixed.text_encoder.to(torch.float16)
    bases["half_text_encoder"] = place / "bases" / "half_text_encoder"
    mixed.save_pretrained(bases["half_text_encoder"])
    for name, base in bases.items():
        (place / name).mkdir()
        found[name] = exported(place / name, base, variant="fp16" if name == "variant" else None)
    for dtype in ("float16", "bfloat16"):
        (place / dtype).mkdir()
        found[dtype] = exported(place / dtype, toy_pipeline, "--dtype", dtype)
    found["single_file"] = of_a_checkpoint(place, bases["sd1_half"])
    return found


def of_a_checkpoint(place: Path, base: Path) -> Path:
    """The pipeline folder of a run on a single checkpoint in float16."""
    run, file = finished_run(place / "single", base), place / "base.safetensors"
    erase_main(["export", "--run", str(run), "--format", "single_file", "--output", str(file)])
    write_pipeline(place / "of_a_checkpoint", *load_with_source(str(file), layout=str(base)), {}, None)
    return place / "of_a_checkpoint"


def dtypes_of(asked: str, versions: dict[str, str]) -> list[str]:
    """Which dtypes the parts of a pipeline have: one."""
    early = tuple(map(int, versions["diffusers"].split(".")[:2])) < (0, 36)  # does not know ``dtype`` and says so
    return {"dtype": WHOLE if early else HALF, "torch_dtype": HALF, "bfloat16": BFLOAT16}.get(asked, WHOLE)


def generated(
    python: Path | None, folders: dict[str, Path], output: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What ``generate.py`` prints and the images, by the names of the folders; by another interpreter, if given."""
    names = {str(folder): name for name, folder in folders.items()}
    script, args = ROOT / "tests/compat/generate.py", [str(output), *names]
    if python is None:
        done = forked(script, args)
    else:
        command = [str(python), str(script), *args]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.loads(done.stdout.strip().splitlines()[-1])
    for folder, name in names.items():
        for asked in ASKED:
            found = shown["dtypes"][folder][asked]
            assert found == dtypes_of(asked, shown["versions"]), f"{name} with {asked}: {found}"
    return shown, {names[folder]: image for folder, image in load_file(output).items()}


@pytest.fixture(scope="module")
def own_images(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return generated(None, folders, tmp_path_factory.mktemp("own") / "images.safetensors")[1]


def test_every_folder_generates_in_every_dtype_under_the_newest_versions(own_images: dict[str, torch.Tensor]) -> None:
    for image in own_images.values():
        assert image.isfinite().all() and image.std() > 0.01  # no flat grey
    kinds = {"float16": HALF_IMAGE, "sd1_half": HALF_IMAGE, "half_text_encoder": HALF_IMAGE, "bfloat16": BFLOAT16_IMAGE}
    for name, tolerance in kinds.items():
        below(float((own_images[name] - own_images["sd1"]).abs().max()), tolerance)


@pytest.mark.parametrize("versions", [path.stem for path in LISTS])
def test_every_folder_generates_the_same_under_other_versions(
    folders: dict[str, Path], own_images: dict[str, torch.Tensor], tmp_path: Path, versions: str
) -> None:
    shown, images = generated(python_of(versions), folders, tmp_path / "images.safetensors")
    listed = dict(
        line.split("==") for line in (ROOT / f"tests/compat/{versions}.txt").read_text().split() if "==" in line
    )
    assert shown["versions"] == {name: listed[name] for name in shown["versions"]}
    for name, image in images.items():  # float32 arithmetic on the same weights, in another order at most
        close(image, own_images[name], OTHER_VERSIONS)


def test_large_images_are_decoded_one_by_one(toy_pipeline: Path, tmp_path: Path) -> None:
    """A decoder wants gigabytes for an image of 512 pixels, and half as much again for its kernels."""
    large = shutil.copytree(toy_pipeline, tmp_path / "large")
    file = large / "unet" / "config.json"
    pixels = 2 ** (len(load_pipeline(str(toy_pipeline)).vae.config.block_out_channels) - 1)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": 512 // pixels}))
    assert load_pipeline(str(large)).vae.use_slicing and not load_pipeline(str(toy_pipeline)).vae.use_slicing
