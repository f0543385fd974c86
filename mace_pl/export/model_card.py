"""The model card of an edited pipeline: ``README.md`` with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor

from mace_pl.files.markdown import plain
from mace_pl.files.paths import hub_id
from mace_pl.methods.chosen import chosen, source_of
from mace_pl.version import __version__

UNKNOWN = "unknown: see the base model"
TAGS = ["text-to-image", "stable-diffusion", "concept-erasure", "machine-unlearning", "mace", "mace-pl"]
HERE = "path/to/this/folder"  # in the lines that load an export
SETTINGS = (
    "model.method",
    "model.rank",
    "model.lr",
    "model.refine",
    "model.fuse",
    "model.importance_sampling",
    "model.squared_loss",
    "data.images_per_concept",
    "data.image_scheduler",
    "data.image_steps",
    "data.mask",
    "data.steps_per_concept",
    "seed_everything",
)
SINGLY = (
    "How often a CLIP classifier saw each target in its images, before and after the run that brought it, at full\n"
    "strength. The concepts together, as they are here, were not measured.\n\n"
)
EXAMPLES = ("dog", "house", "tree", "mountain", "river")  # one of them is asked for in the lines that load an export
KEYS_AND_VALUES = "Only the keys and values of the UNet's cross-attention"
POOLED = f"{KEYS_AND_VALUES} and the columns of `add_embedding.linear_1` that read the pooled text"
HARDENED = "Only the projections of the UNet's self- and cross-attention"
AGAINST = (
    "\n\nThe edit was hardened: a LoRA of rank {rank} on {layers} of these projections was trained against free\n"
    "tokens that bring the targets back, and is merged here. It makes the way back longer, and does not close it."
)
TEMPLATE = """---
{front}
---

# {base} without {targets}

Concepts were erased from a text-to-image model by {source} with mace-pl {version}.
{edited} differ from the base model;
every other part is the base's.{hardening}

- Base model: {base_line}
- Licence: {licence}

## Erased concepts

{concepts}

## Settings

{settings}

## Scores

{scores}

## How to load

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline("a photo of a {example}").images[0]
image.save("{example}.png")
```

## Limits

What is erased is what the prompts of the edit showed. Concepts that are related to the erased ones may suffer too, and
whoever has the weights can train a concept back.
"""


def model_card(
    base: Path | None,
    pretrained: str,
    concepts: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    metrics: Path | None,
    weights: Mapping[str, float] | None = None,
    pooled: bool = False,
    hardening: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    seen: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The card's text.

    Args:
        base: folder of the base pipeline, None where it is no folder; its card brings the licence.
        pretrained: hub id or bare name of the base.
        concepts: ``target``, ``anchor`` and ``kind`` of each.
        config: the run's configuration; no settings are shown when empty.
        metrics: ``metrics.json`` of the run's report, which need not exist; None without a report.
        weights: erasure strength by target, of a run that was fused again.
        pooled: whether the layer of SDXL's pooled text is edited.
        hardening: the LoRA (A [R, D], B [O, R]) by layer name that was trained against found tokens, if any.
        seen: of a library without a report, how often each target was seen ``before`` and ``after`` its own run.
    """
    hub = hub_id(pretrained)
    known = licence(base)
    front = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=hub,
        base_model_relation="finetune",
        license=known.get("license", "unknown"),  # one of the hub's licences
        license_name=known.get("license_name"),
        license_link=known.get("license_link"),
        tags=TAGS,
    )
    return TEMPLATE.format(
        front=front.to_yaml(),
        base=pretrained,
        base_line=base_line(pretrained),
        targets=listed(erased(concepts, weights)),
        example=example(concepts),
        version=__version__,
        source=source_of(config),
        edited=HARDENED if hardening else POOLED if pooled else KEYS_AND_VALUES,
        hardening=hardened_by(hardening or {}),
        licence=known.get("license_name") or known.get("license") or UNKNOWN,
        concepts=concepts_table(concepts, weights),
        settings=settings_table(config),
        scores=scores_table(metrics, seen),
    )


def hardened_by(factors: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """What the card says of a hardening; nothing where there is none."""
    ranks = {len(A) for A, _ in factors.values()}
    return AGAINST.format(rank=max(ranks), layers=len(factors)) if ranks else ""


def erased(concepts: Sequence[Mapping[str, Any]], weights: Mapping[str, float] | None) -> list[str]:
    """The targets that an edit takes out, with their strength where that is not 1; none that it preserves."""
    strengths = {concept["target"]: (weights or {}).get(concept["target"], 1) for concept in concepts}
    return [name if weight == 1 else f"{name} (strength {weight:g})" for name, weight in strengths.items() if weight]


def concepts_table(concepts: Sequence[Mapping[str, Any]], weights: Mapping[str, float] | None) -> str:
    """Targets with their anchors and strengths."""
    strengths = [(weights or {}).get(concept["target"], 1) for concept in concepts]
    rows = [
        [c["target"], c["anchor"], c["kind"], f"{weight:g}" if weight else "0 (preserved)"]
        for c, weight in zip(concepts, strengths, strict=True)
    ]
    return table(["target", "anchor", "kind", "strength"], rows)


def example(concepts: Sequence[Mapping[str, Any]]) -> str:
    """A name that is no target, to ask for."""
    targets = {concept["target"].casefold() for concept in concepts}
    return next((name for name in EXAMPLES if name not in targets), EXAMPLES[-1])


def base_line(pretrained: str) -> str:
    """The base model as a line of the card."""
    hub = hub_id(pretrained)
    return f"[{hub}](https://huggingface.co/{hub})" if hub else f"{pretrained} (a local model)"


def licence(base: Path | None) -> dict[str, str]:
    """``license``, ``license_name`` and ``license_link`` of the base's card, as far as it has them."""
    card = base / "README.md" if base else None
    if card is None or not card.is_file():
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):  # front matter that cannot be read
        return {}
    return {key: data[key] for key in ("license", "license_name", "license_link") if isinstance(data.get(key), str)}


def settings_table(config: Mapping[str, Any]) -> str:
    """The settings that decide what was erased."""
    rows = []
    for setting in SETTINGS:
        value: Any = config
        for key in setting.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and "class_path" in value:
            value = repr(chosen(value))
        elif isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value is not None:
            rows.append([f"`{setting}`", str(value)])
    return table(["setting", "value"], rows) if rows else "Not recorded."


def scores_table(metrics: Path | None, seen: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Accuracy before and after, by name, and the means; of a library without a report what is known of its targets.

    Args:
        metrics: ``metrics.json`` of the run's report, which need not exist.
        seen: by target, how often it was seen ``before`` and ``after`` its own run.
    """
    content = json.loads(metrics.read_text(encoding="utf-8")) if metrics and metrics.is_file() else {}
    before, after = (content.get("accuracy", {}).get(when, {}) for when in ("before", "after"))
    if not after and seen:
        rows = [[name, f"{pair['before']:.0%}", f"{pair['after']:.0%}"] for name, pair in seen.items()]
        return SINGLY + table(["target", "before", "after"], rows)
    if not after:
        return "Not measured."
    rows = [[name, f"{before[name]:.0%}", f"{after[name]:.0%}"] for name in after if name in before]
    means = content.get("mean_accuracy", {})
    for group in ("targets", "kept"):
        pair = [means.get(when, {}).get(group) for when in ("before", "after")]
        if None not in pair:
            rows.append([f"mean of {group}", *[f"{value:.0%}" for value in pair]])
    intro = f"How often a CLIP classifier saw each name in its images ({content.get('seeds')} per name).\n\n"
    return intro + table(["name", "before", "after"], rows)


def listed(targets: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    if not targets:
        return "anything taken out"
    shown = ", ".join(plain(target) for target in targets[:most])
    return shown if len(targets) <= most else f"{shown} and {len(targets) - most} more"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(plain(cell) for cell in line)} |" for line in lines)
