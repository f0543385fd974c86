"""Every command and Python block of README.md and docs/ runs, word for word, in a folder where its placeholders exist.

A command is made small by options that are appended to it: those of the longest beginning of it in ``SMALL``. A command
that has no entry is run as it stands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import mace_pl
from mace_pl.cli import erase_main
from mace_pl.files.artifacts import read_tensors
from mace_pl.train_cli import train_main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAINS = {"erase.py": erase_main, "train.py": train_main}
ONE = "--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto --trainer.enable_progress_bar false"
FEW = (
    "--data.images_per_concept 1 --data.image_steps 1 --data.steps_per_concept 1 "
    "--report_seeds 1 --kept [] --classifier null"
)
TRAIN = (
    "--model.output_dir {place}/trained --data.batch_size 2 --trainer.max_steps 1 --trainer.accelerator cpu "
    "--trainer.logger.save_dir {place}/log --trainer.callbacks.dirpath {place}/kept --trainer.enable_progress_bar false"
)
#: appended to a command, by how it begins
SMALL = {
    "python erase.py fit": f"{FEW} {ONE} --overwrite true",
    "python erase.py fit --model.pretrained stable-diffusion-v1-5/stable-diffusion-v1-5": (
        f"{FEW} {ONE} --overwrite true --model.pretrained checkpoints/emoji"
    ),
    "python erase.py fit --config configs/emoji/erase_ship.yaml --output_dir checkpoints/erased/ship_searched": (
        "--data.images_per_concept 1 --data.image_steps 1 --data.steps_per_concept 1 --report_seeds 0 --tune 1 "
        f"{ONE} --model.domain_names [dog,cat] --judge support.judges.Sums --judge.names [ship,dog,cat] "
        "--save_pipeline false --overwrite true"
    ),
    "python erase.py cache": f"{ONE} --data.limit 4 --model.overwrite true",
    "python erase.py cache --config configs/emoji/cache_domain.yaml": f"{ONE} --model.overwrite true",
    "python erase.py export": "--overwrite true",
    "python erase.py push": "",
    "python erase.py tune": (
        "--trials 1 --confirm_seeds 4 --steps 1 --names [dog,cat] --judge support.judges.Sums "
        "--judge.names [ship,dog,cat] --save_pipeline false --overwrite true"
    ),
    "python erase.py harden": (
        "--overwrite true --harden.rounds 1 --harden.steps 1 --harden.found 1 --harden.attack_steps 1 "
        "--harden.images 1 --harden.preserved_images 1 --harden.batch 2 --harden.preserved_batch 1"
    ),
    "python erase.py fuse": "",
    "python erase.py inspect": "",
    "python erase.py add": "",
    "python erase.py log": "",
    "python erase.py remove": "",
    "python erase.py replace": "",
    "python erase.py undo": "",
    "python erase.py merge": "",
    "python erase.py import-cache": "",
    "python erase.py prompts": "--endpoint {service} --count 2",
    "python erase.py prompts --captions": "--count 3",
    "python erase.py predict": f"{ONE} --model.steps 1 --data.seeds 1 --data.names [ship,dog]",
    "python erase.py test": f"{ONE} --model.steps 1 --data.seeds 1 --data.names [ship,dog] --data.synonyms null",
    "python erase.py test --config configs/evaluate/celebrities_10.yaml": (
        f"{ONE} --model.steps 1 --data.seeds 2 --data.names [ship,dog,cat] --model.pretrained checkpoints/emoji "
        "--model.runs [checkpoints/erased/erase_ship] --model.classifier checkpoints/emoji/clip "
        "--model.judge.init_args.references people --model.judge.init_args.detector people/yunet.onnx "
        "--model.judge.init_args.recogniser people/sface.onnx"
    ),
    "python erase.py compare": f"{ONE} --model.steps 1 --data.seeds 1 --data.names [ship,dog] --data.synonyms null",
    "python erase.py attack": (
        f"{ONE} --model.steps 1 --model.strengths.token_steps 1 --data.seeds 1 --data.trials 1 --data.names [ship,dog]"
    ),
    "python erase.py detect": "",
    "python erase.py studio": "",
    "python train.py fit --config configs/train/emoji_vae.yaml": f"{TRAIN} --data.images 2",
    "python train.py fit --config configs/train/emoji_clip.yaml": f"{TRAIN} --data.images 2 --model.layers 1",
    "python train.py fit --config configs/train/emoji_scorer.yaml": f"{TRAIN} --data.images 2",
    "python train.py fit --config configs/train/emoji_unet.yaml": (
        f"{TRAIN} --data.images 2 --model.output_dir {{place}}/parts --model.channels [16,16]"
    ),
    "python train.py fit --config configs/train/finetune.yaml": TRAIN,
    "python train.py fit --config configs/train/emoji_judge.yaml": f"{TRAIN} --data.images 4",
    "make": "--dry-run",
}
#: scripts that another test runs, small
ELSEWHERE = {
    "scripts/tables.py": "scripts/test_tables.py",
    "scripts/compare_methods.py": "scripts/test_compare_methods.py",
}
#: packages that a command cannot do without: it ends with a message that names them
OPTIONAL = {"python erase.py detect": "nudenet", "python erase.py studio": "gradio"}

SERVES = "python erase.py studio"  # until Ctrl+C: tests/studio/test_page.py waits for that


def blocks(language: str) -> list[Any]:
    """Every block of a language, named by its document and line."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(rf"```{language}\n(.*?)```", text, flags=re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{document.relative_to(ROOT)}:{line}"))
    return found


def commands(block: str) -> list[list[str]]:
    """The words of each command of a shell block, continued lines joined."""
    lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


class Service(BaseHTTPRequestHandler):
    """A language model that always says the same."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        message = {"content": "1. A ship at sea.\n2. an old ship in a harbour"}
        self.wfile.write(json.dumps({"choices": [{"message": message}]}).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the documents take for granted: the model, a finished run, statistics, images."""
    place = tmp_path_factory.mktemp("documents")
    base = place / "checkpoints/emoji"
    shutil.copytree(mace_pl.files.paths.resolve("checkpoints/emoji"), base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        erase_main(
            [
                "fit",
                "--config",
                "configs/emoji/erase_ship.yaml",
                "--export",
                "[pipeline,unet,lora]",
                *f"{FEW} {ONE}".split(),
            ]
        )
        names = ["--data.names", "[cat]", "--model.output", "b.safetensors"]
        erase_main(["cache", "--config", "configs/emoji/cache_domain.yaml", *ONE.split(), *names])
    shutil.copytree(place / "checkpoints/erased/erase_ship", place / "checkpoints/erased/erase_animals")
    shutil.copytree(base, place / "path/to/a/stable-diffusion-folder")
    for name in ("a.safetensors", "checkpoints/statistics/emoji_prior.safetensors"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / "statistics/prior.safetensors", place / name)
    published(base, place / "cache_coco.pt")
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(base / part, place / "parts" / part)
    (place / "my_images").mkdir()
    for word in ("dog", "ship"):
        Image.new("RGB", (64, 64), "red").save(place / "my_images" / f"{word}.png")
    lines = [json.dumps({"file_name": f"{word}.png", "text": f"a photo of a {word}"}) for word in ("dog", "ship")]
    (place / "my_images/metadata.jsonl").write_text("\n".join(lines))
    return place


def published(base: Path, file: Path) -> None:
    """A cache of the published layout that belongs to the bundled model."""
    gram = read_tensors(base / "statistics/prior.safetensors", "statistics", "base")[0]["gram"]
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    sums = {}
    for i, layer in enumerate(part for attention in layers for part in (attention.to_k, attention.to_v)):
        sums |= {f"{i}_for_mat1": (layer.weight.detach().double() @ gram).float(), f"{i}_for_mat2": gram.float()}
    torch.save(sums, file)


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each block."""
    folder = tmp_path / "place"
    shutil.copytree(made, folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    return folder


def small(words: list[str], place: Path, service: str) -> list[str]:
    """What makes a command small; every command of this project must have an entry."""
    line = " ".join(words)
    entries = [start for start in SMALL if f"{line} ".startswith(f"{start} ")]
    assert entries, f"{line}: say in SMALL how a test runs it, and let it run"
    return SMALL[max(entries, key=len)].format(place=place, service=service).split()


def people(place: Path) -> None:
    """Toy networks of OpenCV, and images of those whom they know."""
    from support.facenets import detector, image_of, recogniser

    for name, colour in {"ship": "red", "dog": "lime", "cat": "blue"}.items():
        (place / "people" / name).mkdir(parents=True)
        image_of((colour, 8, 16, 8)).save(place / "people" / name / "0.png")
    detector(place / "people/yunet.onnx")
    recogniser(place / "people/sface.onnx")


def run(words: list[str], place: Path, service: str) -> None:
    """One command, in this process where it is one of the project's two programs."""
    line = " ".join(words)
    if words[0] == "make":
        done = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "python" in done.stdout
        return
    assert words[0] == "python", f"{line}: the tests run python and make alone"
    if words[1] in ELSEWHERE:
        assert (
            Path(words[1]).name in (ROOT / "tests" / ELSEWHERE[words[1]]).read_text()
            or Path(words[1]).stem in (ROOT / "tests" / ELSEWHERE[words[1]]).read_text()
        )
        return
    more = small(words, place, service)
    if "people/yunet.onnx" in more:
        people(place)
    if words[2] == "detect":
        shutil.copytree(place / "my_images", place / words[3])
    for start, package in OPTIONAL.items():
        if line.startswith(start) and find_spec(package) is None:
            with pytest.raises(SystemExit, match=package):
                MAINS[words[1]]([*words[2:], *more])
            return
    if line.startswith(SERVES):
        return
    MAINS[words[1]]([*words[2:], *more])


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_end_well(block: str, place: Path, service: str) -> None:
    for words in commands(block):
        if words[0] == ".":  # the environment that make demo sets up
            assert words == [".", ".venv/bin/activate"] and ".venv" in (ROOT / "Makefile").read_text(encoding="utf-8")
            continue
        try:
            run(words, place, service)
        except SystemExit as stop:  # which also ends --help
            assert stop.code in (0, None), f"{' '.join(words)}: {stop.code}"


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run_as_they_are_printed(block: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mace_pl.erase

    def quick(**given: Any) -> Any:
        few = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 1}
        return whole(**given | {"data": {**given["data"], **few}})

    monkeypatch.setattr(mace_pl, "erase", quick)  # the same function with fewer steps
    before = set(place.rglob("*"))
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})
    written = {path for path in set(place.rglob("*")) - before if path.is_file()}
    assert written, "a block ends with something that lies in the folder"
    if "from_pretrained" in block:
        assert any(path.suffix == ".png" and Image.open(path).size == (64, 64) for path in written)


def test_the_card_of_an_exported_pipeline_tells_how_to_load_it(place: Path) -> None:
    card = (place / "checkpoints/erased/erase_ship/pipeline/README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    (place / "path/to/this").mkdir(parents=True)
    (place / "path/to/this/folder").symlink_to(place / "checkpoints/erased/erase_ship/pipeline")
    exec(compile(block, "card", "exec"), {"__name__": "__main__"})
    assert Image.open("dog.png").size == (64, 64)
