"""How well a model of the sprites generates what it is asked for, by two judges: CLIP and the convolutional one.

Run it as ``python scripts/levels.py`` with the pipeline, the judge's weights and, where CLIP is not in the pipeline's
``clip/``, its folder. Levels: every name; the ten CIFAR-10 names; the names in every style, and the styles themselves;
sentences and descriptions that were never trained on. About 25 minutes on two CPU cores for five seeds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compared import chosen
from PIL import Image
from runs import run

from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.evaluation.convolutional import ConvolutionalJudge
from mace_pl.files.artifacts import claim_output, write_json
from mace_pl.files.paths import resolve
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.sampling import generate
from mace_pl.pretraining.sentences import fill, read_grammar

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Asked = list[tuple[str, str]]  # prompt, and the name that should be seen


def levels(folder: Path, styles: Sequence[str], names: Sequence[str], seeds: int) -> dict[str, Asked]:
    """What is asked at each level, ``seeds`` times; sentences and descriptions are chosen by a fixed seed."""
    grammar, rng = read_grammar(folder), random.Random(2027)
    plain = [(f"a photo of a {name}", name) for name in names]
    styled = [(f"a photo of a {name} in the style of {style}", name) for style in styles for name in TEN]
    said = [(fill(rng.choice(grammar.held_out), name, grammar, rng), name) for name in names for _ in range(seeds)]
    described = [(text, name) for name, parts in grammar.descriptions.items() for text in parts["held_out"]]
    return {
        "names": plain * seeds,
        "ten": [(prompt, name) for prompt, name in plain if name in TEN] * seeds,
        "names in styles": styled,
        "sentences": said,
        "descriptions": described * seeds,
    }


def share(judge: Any, images: Sequence[Image.Image], truth: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """The share of the images that are taken for what they should show, and of those with nothing to judge."""
    chances = judge(images)
    seen = [
        names[i] if detected else "" for i, detected in zip(chances.argmax(-1).tolist(), chances.any(-1), strict=True)
    ]
    right = sum(one == other for one, other in zip(seen, truth, strict=True))
    return {"seen": right / len(truth), "empty": seen.count("") / len(truth)}


def main(
    pretrained: str = "checkpoints/emoji",
    judge: str = "checkpoints/emoji/judge/judge.safetensors",
    clip: str | None = None,
    output: str = "checkpoints/scores/levels.json",
    folder: str = "mace_pl/pretraining/emoji",
    seeds: int = 5,
    first_seed: int = 0,
    steps: int = 30,
    guidance: float = 5.0,
    only: list[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Generate every level and print what both judges see.

    Args:
        pretrained: folder of the pipeline.
        judge: weights of the convolutional judge.
        clip: folder of the CLIPModel; ``clip`` in ``pretrained`` by default.
        output: the JSON file with the shares.
        folder: the sprites, with sentences and descriptions.
        seeds: images per prompt, or sentences per name; names in styles have one each.
        first_seed: the first seed.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        only: names of levels; all when None.
        overwrite: replace ``output``.
    """
    claim_output(Path(output), overwrite, "output")
    judges = {of: ConvolutionalJudge(judge, of) for of in ("concepts", "styles")}
    names, styles = judges["concepts"].names, judges["styles"].names
    folder_of_clip = clip or f"{pretrained}/clip"
    of_clip = ClipClassifier(folder_of_clip, names)
    of_styles = ClipClassifier(folder_of_clip, styles, "an image in the style of {}")
    pipeline, results = load_pipeline(pretrained), {}
    every = levels(resolve(folder), styles, names, seeds)
    for level, asked in chosen(every, only, "only").items():
        prompts, truth = [prompt for prompt, _ in asked], [name for _, name in asked]
        images = generate(pipeline, prompts, range(first_seed, first_seed + len(asked)), steps, guidance)
        rows = [("CLIP", of_clip), ("judge", judges["concepts"])]
        results[level] = {who: share(one, images, truth, names) for who, one in rows} | {"images": len(images)}
        if level == "names in styles":
            wanted = [style for style in styles for _ in TEN]
            rows = [("CLIP", of_styles), ("judge", judges["styles"])]
            results["styles"] = {who: share(one, images, wanted, styles) for who, one in rows}
        print(level, json.dumps(results[level]), flush=True)
    write_json(Path(output), results)
    print(f"styles {json.dumps(results.get('styles'))}\nWritten to {output}")


if __name__ == "__main__":
    run(main)
