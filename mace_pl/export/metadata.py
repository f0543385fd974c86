"""What exported files say about themselves in the words of other programs.

``ss_`` is what kohya's sd-scripts write into a LoRA; A1111 and Forge sort LoRAs by it. ``modelspec.`` is Stability's
specification of metadata, version 1.0.0; adapters carry the ``/lora`` that sd-scripts gave them and programs look for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import image_size
from mace_pl.models.protocols import Pipeline

SPEC = "modelspec."
ORIGINAL_CODE = "https://github.com/Stability-AI/generative-models"  # sd-scripts' name for the original layout
BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
PREDICTIONS = {"v_prediction": "v", "epsilon": "epsilon"}
#: what remains true of a checkpoint whose keys and values change; hashes, title and the like speak of the old content
STAYS = ("architecture", "resolution", "license", "timestep_range", "encoder_layer")


def family(pipeline: Pipeline) -> str:
    """``sd1``, ``sd2`` or ``sdxl``, by the text encoders."""
    encoders = backbone_of(pipeline).encoders
    if len(encoders) > 1:
        return "sdxl"
    return "sd1" if encoders[0].config.hidden_act == "quick_gelu" else "sd2"  # OpenAI's CLIP or OpenCLIP


def base_facts(file: Path | None) -> dict[str, str]:
    """What the base's single checkpoint says about itself and what is true of the edit too; nothing without one."""
    if file is None:
        return {}
    with safe_open(str(file), framework="pt") as opened:
        header = opened.metadata() or {}
    return {f"{SPEC}{key}": header[f"{SPEC}{key}"] for key in STAYS if f"{SPEC}{key}" in header}


def architecture(pipeline: Pipeline) -> str:
    """The specification's name of the base's architecture."""
    kind = family(pipeline)
    if kind == "sd2":
        v_prediction = pipeline.scheduler.config.get("prediction_type") == "v_prediction"
        return "stable-diffusion-v2-768-v" if v_prediction else "stable-diffusion-v2-512"
    return {"sd1": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}[kind]


def modelspec(
    pipeline: Pipeline,
    title: str,
    description: str,
    licence: str | None,
    lora: bool,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The ``modelspec.`` entries; the hash comes in when the file is written.

    Args:
        pipeline: the edited pipeline.
        title: shown in lists of models.
        description: what was erased from what.
        licence: of the base model, where it is known.
        lora: of a LoRA, else of a whole checkpoint.
        base: what the base says about itself: :func:`base_facts`.
    """
    height, width = image_size(pipeline)
    prediction = PREDICTIONS.get(str(pipeline.scheduler.config.get("prediction_type")))
    facts = {"architecture": architecture(pipeline), "resolution": f"{width}x{height}"}
    facts |= {"license": licence} if licence else {}
    facts |= {"prediction_type": prediction} if prediction else {}
    entries = {f"{SPEC}{key}": value for key, value in facts.items()} | dict(base or {})
    in_diffusers_names = lora and family(pipeline) != "sdxl"
    entries |= {
        f"{SPEC}sai_model_spec": "1.0.0",
        f"{SPEC}implementation": "diffusers" if in_diffusers_names else ORIGINAL_CODE,
        f"{SPEC}title": title,
        f"{SPEC}description": description,
        f"{SPEC}date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    entries[f"{SPEC}architecture"] += "/lora" if lora else ""
    return entries


def kohya_facts(pipeline: Pipeline, name: str, base: str, rank: int) -> dict[str, str]:
    """The ``ss_`` entries of a LoRA.

    Args:
        pipeline: the base pipeline.
        name: of the LoRA, by which A1111 calls it.
        base: name of the base model.
        rank: of the LoRA, which is its alpha too.
    """
    kind = family(pipeline)
    height, width = image_size(pipeline)
    return {
        "ss_base_model_version": BASE_VERSIONS[kind],
        "ss_v2": str(kind == "sd2"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_output_name": name,
        "ss_sd_model_name": base,
        "ss_resolution": str((width, height)),
    }


def described(concepts: Sequence[Mapping[str, Any]], base: str, method: str = "MACE", most: int = 20) -> str:
    """One line on what was erased; the names are no words that have to be in a prompt."""
    shown = [f"{c['target']} (now {c['anchor']})" if c["anchor"] else c["target"] for c in concepts[:most]]
    more = [f"{len(concepts) - most} more"] if len(concepts) > most else []
    return f"Erases from {base} by {method}: {', '.join([*shown, *more])}. Works in every prompt; use it at strength 1."


def safe_name(folder: Path) -> str:
    """What a run's LoRA is called after: the folder's name, with what file names and prompts of A1111 cannot hold."""
    name = "".join(c if c.isalnum() or c in "-._" else "_" for c in folder.resolve().name)
    return name.strip("._") or "edit"
