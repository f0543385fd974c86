"""The model card beside a LoRA: ``README.md`` with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mace_pl.export.model_card import (
    TAGS,
    UNKNOWN,
    base_line,
    concepts_table,
    erased,
    example,
    licence,
    listed,
    scores_table,
    settings_table,
)
from mace_pl.files.paths import hub_id
from mace_pl.methods.chosen import source_of
from mace_pl.version import __version__

BY_DIFFUSERS = """pipeline.load_lora_weights("path/to/this/folder", weight_name="{name}.safetensors")"""
BY_PEFT = """pipeline.unet = PeftModel.from_pretrained(pipeline.unet, "path/to/this/folder")"""
READERS = {
    "lora": """The file has kohya's names. diffusers reads it, and so do ComfyUI, A1111 (`<lora:{name}:1>`), Forge,
InvokeAI, stable-diffusion.cpp and sd-scripts, all at strength 1. There is no trigger phrase.""",
    "lora_diffusers": "The file has the names of diffusers. For other programs take the file with kohya's names.",
    "lora_peft": "The folder is an adapter of PEFT. For other programs take the file with kohya's names.",
}
POOLED = """
SDXL reads a prompt by its pooled embedding too. One layer of the LoRA closes that path: `{layer}`. {client}
"""
CLIENTS = {
    "lora": """ComfyUI, A1111
and Forge find it by this name, diffusers 0.42 too; earlier ones refuse a file with this layer, so give them the one in
the names of diffusers. A program that looks for attention layers alone, as scripts that merge LoRAs do, leaves it out
without a word, and what is erased can come back by this path: use the pipeline or the single checkpoint there.""",
    "lora_diffusers": "diffusers takes it.",
    "lora_peft": "PEFT takes it.",
}
TEMPLATE = """---
{front}
---

# {name}: {base} without {targets}

A LoRA that takes concepts out of a text-to-image model. It is the best approximation of rank {rank} of an edit by
{source} with mace-pl {version}; the largest relative error of a layer is {error:.1%}.

- Base model: {base_line}
- Licence: {licence}

## Erased concepts

{concepts}

## How to load

```python
{imports}

pipeline = DiffusionPipeline.from_pretrained("{place}").to(torch.float32)
{load}
image = pipeline("a photo of a {example}").images[0]
```

{readers}
{pooled}
## Settings

{settings}

## Scores of the whole edit

{scores}

## Limits

What is erased is what the prompts of the edit showed. Concepts that are related to the erased ones may suffer too, and
whoever leaves the LoRA out has the base model again.
"""


def lora_card(
    format: str,
    name: str,
    base: Path | None,
    metadata: Mapping[str, Any],
    config: Mapping[str, Any],
    metrics: Path | None,
    rank: int,
    error: float,
    pooled: bool = False,
    hardened: bool = False,
    seen: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The card's text.

    Args:
        format: ``lora``, ``lora_diffusers`` or ``lora_peft``.
        name: of the LoRA.
        base: folder of the base pipeline, whose card brings the licence; None where it is no folder.
        metadata: ``pretrained``, a hub id or a bare name, ``concepts`` and where they are not 1 ``weights``.
        config: the run's configuration; no settings are shown when empty.
        metrics: ``metrics.json`` of the run's report, which need not exist; None without a report.
        rank: of the LoRA.
        error: the largest relative error of a layer.
        pooled: whether the layer of SDXL's pooled text is edited.
        hardened: whether the edit was hardened against found tokens.
        seen: of a library without a report, how often each target was seen ``before`` and ``after`` its own run.
    """
    known, pretrained, concepts = licence(base), metadata["pretrained"], metadata["concepts"]
    front = ModelCardData(
        library_name="peft" if format == "lora_peft" else "diffusers",
        pipeline_tag="text-to-image",
        base_model=hub_id(pretrained),
        base_model_relation="adapter",
        license=known.get("license", "unknown"),  # one of the hub's licences
        license_name=known.get("license_name"),
        license_link=known.get("license_link"),
        tags=["lora", *TAGS],
    )
    strengths = metadata.get("weights")
    peft = format == "lora_peft"
    layer = "lora_unet_label_emb_0_0" if format == "lora" else "add_embedding.linear_1"
    imports = ["import torch", "from diffusers import DiffusionPipeline", *["from peft import PeftModel"] * peft]
    return TEMPLATE.format(
        front=front.to_yaml(),
        name=name,
        base=pretrained,
        base_line=base_line(pretrained),
        targets=listed(erased(concepts, strengths)),
        example=example(concepts),
        rank=rank,
        version=__version__,
        source=source_of(config) + (", hardened against found tokens," if hardened else ""),
        error=error,
        licence=known.get("license_name") or known.get("license") or UNKNOWN,
        concepts=concepts_table(concepts, strengths),
        imports="\n".join(imports),
        place=hub_id(pretrained) or f"path/to/{pretrained}",
        load=BY_PEFT if peft else BY_DIFFUSERS.format(name=name),
        readers=READERS[format].format(name=name),
        pooled=POOLED.format(layer=layer, client=CLIENTS[format]) if pooled else "",
        settings=settings_table(config),
        scores=scores_table(metrics, seen),
    )
