"""Generate an image with every folder that is named, with every way to ask for a dtype, in whatever environment runs
this.

``python generate.py OUTPUT FOLDER...`` writes to OUTPUT, a ``.safetensors`` file, the images that were generated
without asking for a dtype, and prints as JSON the versions and the dtypes of the parts.
"""

import json
import sys
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "dtype": {"dtype": torch.float16},
    "torch_dtype": {"torch_dtype": torch.float16},
    "bfloat16": {"torch_dtype": torch.bfloat16},
    "float32": {"torch_dtype": torch.float32},
}


def generate(folder: str, asked: dict[str, Any]) -> tuple[torch.Tensor, list[str]]:
    """An image in [0, 1], and the dtypes of all parts; two steps, one of a small image where a dtype is asked for."""
    pipeline = DiffusionPipeline.from_pretrained(folder, **asked)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    own = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    steps, size = (1, min(own, 32)) if asked else (2, own)  # convolutions in float16 are slow on a CPU
    given = {"num_inference_steps": steps, "height": size, "width": size, "generator": generator}
    made = pipeline("a photo of a dog", **given, output_type="np").images[0]
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return torch.from_numpy(made.copy()), sorted({str(part.dtype) for part in parts})


def main(output: str, folders: list[str]) -> None:
    """All folders in all ways."""
    images, dtypes = {}, {}
    for folder in folders:
        dtypes[folder] = {}
        for name, asked in ASKED.items():
            image, dtypes[folder][name] = generate(folder, asked)
            if name == "nothing":
                images[folder] = image
    save_file(images, output)
    versions = {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    print(json.dumps({"versions": versions, "dtypes": dtypes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
