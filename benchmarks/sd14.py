"""Time and peak memory of a training step at the shapes of SD 1.4, beside a plain reference.

Run it as ``python benchmarks/sd14.py``: some minutes and about 10 GB on two CPU cores. Weights are random, the
image has 512 × 512 pixels. On a GPU, the table over the number of concepts at once:
``python benchmarks/sd14.py --device cuda --precision bf16 --concepts_at_once "[1, 2, 4, 8, 16]"``. Each row runs in
a process of its own.

Ours keeps latents and text embeddings, as the module does; the reference (``reference.py``) encodes them at each step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from common import Peak, alone, quiet, show_table
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jsonargparse import auto_cli
from reference import PlainTraining
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.methods.losses import masked_attention_norm
from mace_pl.models.cross_attention import attention_losses
from mace_pl.training.frozen_layers import frozen_layers

TOKENS = 77
MB = 2**20


def tokenizer(prompt: str, **_: Any) -> Any:
    """Token numbers of the right shape; which words they are costs no time."""
    ids = [49406, *(320 + len(word) for word in prompt.split())]
    return SimpleNamespace(input_ids=torch.tensor([ids + [49407] * (TOKENS - len(ids))]))


def pipeline(scale: int, layers: int, device: str) -> Any:
    """The networks of SD 1.4 with random weights; ``scale`` divides their widths, for trials."""
    torch.manual_seed(0)
    widths = tuple(w // scale for w in (320, 640, 1280, 1280))
    groups = min(32, widths[0] // 2)
    with torch.device(device):  # random weights are made where they are used
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=widths,
            cross_attention_dim=768 // scale,
            attention_head_dim=8 if scale == 1 else 2,  # the number of heads, as SD 1.4's configuration means it
            norm_num_groups=groups,
        )
        vae = AutoencoderKL(
            block_out_channels=tuple(w // scale for w in (128, 256, 512, 512)),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=min(32, 128 // scale // 2),
            scaling_factor=0.18215,
        )
        heads = 12 if scale == 1 else 2
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768 // scale,
            intermediate_size=3072 // scale,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )
        parts = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(config)}
    for part in parts.values():
        part.requires_grad_(False).eval()
    return SimpleNamespace(**parts, scheduler=DDIMScheduler(), tokenizer=tokenizer)


def given(size: int) -> tuple[Tensor, Tensor, list[str], list[list[bool]]]:
    """An image, its mask, a prompt and the tokens that count."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : -size // 4, size // 4 : -size // 4] = 1
    return torch.rand(1, 3, size, size) * 2 - 1, mask, ["a photo of a ship"], [[i == 5 or i > 5 for i in range(TOKENS)]]


def ours(model: Any, size: int, count: int, checkpointing: bool) -> Callable[[int], None]:
    """A step of ``count`` concepts at once, as the module takes it."""
    device = model.unet.device
    pixels, mask, prompts, positions = given(size)
    with torch.no_grad():
        clean = model.vae.encode(pixels.to(device)).latent_dist.mode() * model.vae.config.scaling_factor
        text = model.text_encoder(tokenizer(prompts[0]).input_ids.to(device))[0].expand(count, -1, -1)
    masks, attended = mask.expand(count, -1, -1, -1).to(device), torch.tensor(positions * count, device=device)
    loras = ConceptLoRAs(model.unet, [f"concept {i}" for i in range(count)], 1, 0)
    optimizer = torch.optim.AdamW(loras.parameters_list(), lr=1e-4, weight_decay=0.01)

    def step(i: int) -> None:
        t = torch.randint(200, 400, (count,), device=device)
        noise = torch.randn(count, *clean.shape[1:], device=device)
        noisy = model.scheduler.add_noise(clean.expand(count, -1, -1, -1), noise, t)
        loras.activate(list(range(count)))
        losses = attention_losses(
            model.unet,
            noisy,
            t,
            text,
            lambda probabilities: masked_attention_norm(probabilities, masks, attended),
            checkpointing=checkpointing,
        )
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        loras.activate(None)
        for c in range(count):
            torch.nn.utils.clip_grad_norm_(loras.parameters_of(c), 1.0)
        optimizer.step()

    return step


def measure(
    form: str, count: int, device: str, precision: str, size: int, steps: int, scale: int, layers: int
) -> tuple[float, float, float]:
    """Seconds of a step (median), peak in MB with weights, and beyond what lay there before the first step."""
    model = pipeline(scale, layers, device)
    step = (
        PlainTraining(model, *given(size)).step
        if form == "reference"
        else ours(model, size, count, form == "checkpointing")
    )
    peak = Peak()
    before = peak.before
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    frozen = frozen_layers(model.unet) if form != "reference" else nullcontext()
    mixed = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
    with frozen, mixed:
        for i in range(1 + steps):  # libraries choose their kernels in the first
            started = time.perf_counter()
            step(i)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    most = torch.cuda.max_memory_allocated() if device == "cuda" else peak.bytes()
    return statistics.median(seconds[1:]), most / MB, (most - before) / MB


def benchmark(
    device: str = "cpu",
    precision: str = "32",
    size: int = 512,
    steps: int = 2,
    concepts_at_once: list[int] | None = None,
    scale: int = 1,
    layers: int = 12,
    threads: int | None = None,
    rounds: int = 1,
) -> dict[str, float]:
    """Print time and peaks, their ratios, and the time that 100 concepts of 50 steps would take.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: ``32``, or ``bf16`` for mixed precision.
        size: of the images, in pixels.
        steps: how many are measured, after one that is not; the table shows their median.
        concepts_at_once: numbers of concepts, each a row; one concept when left out.
        scale: divides the widths of the networks, for trials.
        layers: of the text encoder.
        threads: threads of torch; its own choice when left out.
        rounds: how often the forms are measured, one after the other; the table shows the medians.
    """
    quiet()
    if threads:
        torch.set_num_threads(threads)
    forms = [("reference", 1)]
    forms += [(form, count) for form in ("ours", "checkpointing") for count in concepts_at_once or [1]]
    rows, ratios = [], {}
    plain: tuple[float, float, float] | None = None
    runs: dict[tuple[str, int], list[tuple[float, float, float]]] = {row: [] for row in forms}
    for _ in range(rounds):
        for row in forms:
            runs[row].append(alone(measure, *row, device, precision, size, steps, scale, layers))
    for (form, count), figures in runs.items():
        seconds, most, beyond = (statistics.median(x) for x in zip(*figures, strict=True))
        each = seconds / count
        plain = plain or (each, most, beyond)
        shares = [own / other for own, other in zip((each, most, beyond), plain, strict=True)]
        ratios[f"{form} {count}"] = shares[0]
        numbers = [f"{each:.3f}", f"{shares[0]:.2f}", f"{most:,.0f}", f"{shares[1]:.2f}"]
        numbers += [f"{beyond:,.0f}", f"{shares[2]:.2f}", f"{1 / each:.2f}", f"{5000 * each / 3600:.2f}"]
        rows.append([form, str(count), *numbers])
    columns = ["form", "concepts", "s/sample", "ratio", "peak MB", "ratio", "beyond weights MB", "ratio"]
    columns += ["samples/s", "hours for 100 × 50"]
    show_table(f"a step at {size} × {size} on {device}, precision {precision}", columns, rows)
    return ratios


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
