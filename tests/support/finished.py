"""A finished run without the work: an edit of random values on a base pipeline, as ``fit`` leaves it."""

from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from mace_pl.methods.edit import Edit
from mace_pl.models.cross_attention import key_values
from mace_pl.models.sampling import generate
from support.seeds import seeded

CONCEPTS = [{"target": "ship", "anchor": "ground", "kind": "object"}]


def finished_run(folder: Path, base: Path, variant: str | None = None) -> Path:
    generator = torch.Generator().manual_seed(seeded(3))
    original = key_values(UNet2DConditionModel.from_pretrained(base, subfolder="unet", variant=variant))
    width = next(iter(original.values())).shape[1]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    # R is far from the identity in few directions and near it in the others: the edit truncates well, but not exactly
    # (a product in float64: in float32 its last bit depends on the number of threads)
    few = (noise(width, 3).double() @ noise(3, width).double()).float()
    R = torch.eye(width) + few / width + 0.01 * noise(width, width)
    edit = Edit(R, {n: (noise(1, width) / width**0.5, noise(len(w), 1)) for n, w in original.items()})
    folder.mkdir()
    edit.save(folder / "edit.safetensors", {"pretrained": base.name, "concepts": CONCEPTS})
    model = {"pretrained": str(base), "variant": variant, "rank": 1, "refine": {"identity": 1000.0}}
    config = {"model": model, "seed_everything": 7}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def changes(run: Path, base: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """W and ΔW of every layer in float64, from the files and the formula alone."""
    file, found = load_file(run / "edit.safetensors"), {}
    for name, W in key_values(UNet2DConditionModel.from_pretrained(base, subfolder="unet")).items():
        A, B = (file[f"unet.{name}.lora_{x}.weight"].double().numpy() for x in "AB")
        W64 = W.double().numpy()
        found[name] = (W64, W64 @ file["R"].double().numpy() + B @ A - W64)
    return found


def truncated(run: Path, base: Path, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The weights with ΔW cut to a rank, and the relative error of each layer, by numpy."""
    weights, errors = {}, {}
    for name, (W, delta) in changes(run, base).items():
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        cut = (u[:, :rank] * s[:rank]) @ vt[:rank]
        weights[name] = torch.from_numpy(W + cut).float()
        errors[name] = float(np.linalg.norm(delta - cut) / np.linalg.norm(delta))
    return weights, errors


def images(pipeline: DiffusionPipeline) -> torch.Tensor:
    generated = generate(pipeline, ["a photo of a ship", "a cat"], [0, 1], steps=2)
    return torch.from_numpy(np.stack([np.asarray(p) for p in generated])).int()


@torch.no_grad()
def noise_of(unet: UNet2DConditionModel) -> torch.Tensor:
    """What a UNet answers to one fixed input."""
    generator = torch.Generator().manual_seed(seeded(5))
    config = unet.config
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    text = torch.randn((2, 77, config.cross_attention_dim), generator=generator)
    extra = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra = {"text_embeds": torch.randn((2, pooled), generator=generator), "time_ids": torch.ones(2, 6)}
    return unet(latents, 10, encoder_hidden_states=text, added_cond_kwargs=extra).sample
