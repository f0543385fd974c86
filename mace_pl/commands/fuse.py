"""Fuse a finished run again: drop or re-weight concepts without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import safe_open

from mace_pl.concepts.concept import read_names
from mace_pl.concepts.names import clean_name, clean_names
from mace_pl.concepts.preservation import StageWeights, named_statistics, preservation, with_domain
from mace_pl.errors import UserError
from mace_pl.export.formats import PLACES, Finished
from mace_pl.export.metadata import safe_name
from mace_pl.export.run_base import base_kinds, load_run_base
from mace_pl.files.artifacts import claim_output, written_aside
from mace_pl.files.paths import model_name, resolve
from mace_pl.methods.chosen import chosen
from mace_pl.methods.closed_form import Preservation
from mace_pl.methods.edit import (
    ConceptSums,
    Edit,
    Factors,
    SumsOnDisk,
    fusion,
    load_concept,
    summed,
)
from mace_pl.models.backbone import backbone_of


def fuse_run(
    run: str,
    output_dir: str | None = None,
    drop: list[str] | None = None,
    weights: dict[str, float] | None = None,
    overwrite: bool = False,
    save_pipeline: bool = True,
    method: Literal["fused", "added", "refined"] | None = None,
    refine: dict[str, float] | None = None,
    fuse: dict[str, float] | None = None,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Fuse a run again from what is on disk.

    The LoRAs were trained on the refinement of all the run's concepts; with another set, or with other weights of the
    refinement, they are reused as they are, which is an approximation.

    Args:
        run: output folder of a ``fit``.
        output_dir: where to write; default the run's folder with ``-fused`` behind it.
        drop: targets to leave out; those that ``model.domain_names`` holds are then kept as the others are.
        weights: degree per target, 1 erases it fully, 0 keeps it.
        overwrite: replace ``output_dir`` where it exists.
        save_pipeline: write the whole pipeline too.
        method: ``fused``, the closed-form fusion; ``added``, the LoRAs simply added to the refined weights; or
            ``refined``, the refined weights without LoRAs. The last two show what each stage contributes. Default
            ``fused``, and ``refined`` where the run trained no LoRAs.
        refine: weights of the refinement in place of the run's, such as ``{domain: 0.1}``.
        fuse: weights of the fusion in place of the run's.
        pretrained: where the run's base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; where the run found it when None.

    Returns:
        The folder that was written.

    Raises:
        UserError: no run there, an unknown target, nothing left, a weight outside [0, 1], or a term that no closed
            form has.
    """
    folder = Path(run)
    config, made = _read_run(folder)
    concepts = made["concepts"]
    drop = clean_names(drop or [], "drop")
    weights = {clean_name(name, "weights"): weight for name, weight in (weights or {}).items()}
    named = [c["target"] for c in concepts]
    for name in [*drop, *weights]:
        if name not in named:
            raise UserError(f"{name!r} is no target of {run}. Its targets are {', '.join(named)}.")
    for name, weight in weights.items():
        if not 0 <= weight <= 1:
            raise UserError(f"weights: {name}={weight} must be between 0 (kept) and 1 (erased).")
    targets = [t for t in named if t not in drop]
    if not targets:
        raise UserError("drop leaves no target. Use the original model instead.")
    for stage, changed in (("refine", refine or {}), ("fuse", fuse or {})):
        config["model"][stage] = _changed(config["model"], changed, stage)
    closed_form = chosen(config["model"].get("method"))
    if method not in (None, "refined") and not closed_form.trains:
        raise UserError(f"method={method}: the run trained no LoRAs ({closed_form!r}). Pass refined, or leave it out.")
    method = method or ("fused" if closed_form.trains else "refined")
    output = Path(output_dir) if output_dir else folder.with_name(f"{folder.name}-{method}")
    claim_output(output, overwrite)
    _check_files(config["model"])
    pipeline, config["model"] = load_run_base(config["model"], made, pretrained, layout)
    keep_refine, keep_fuse = _preservation(pipeline, config["model"], targets)
    sums, loras = SumsOnDisk(), {}
    for target in targets:
        weight = weights.get(target, 1.0)
        own, factors = load_concept(folder, target)
        sums.add(target, own.weighted(weight))
        loras[target] = {n: (A, weight * B) for n, (A, B) in factors.items()}
    original, total = backbone_of(pipeline).key_values(), summed(sums.values())
    T = closed_form.solve(total.F, total.G, keep_refine, original)
    edit = Edit(T, {})
    if method != "refined":
        edit = fusion(T, sums, loras, keep_fuse) if method == "fused" else Edit(T, _added(sums, loras))
    kept = [c for c in concepts if c["target"] in targets]
    meta: dict[str, Any] = {key: made[key] for key in ("text_encoder", "unet", "seed") if key in made}
    meta |= {"pretrained": model_name(config["model"]["pretrained"]), "concepts": kept, "weights": weights}
    meta |= {"base": base_kinds(config["model"]), "method": method} | {
        stage: config["model"][stage] for stage in ("refine", "fuse")
    }
    finished = Finished(pipeline, edit, original, meta, config, safe_name(output))
    backbone_of(pipeline).set_key_values(finished.weights)
    with written_aside(output, "output_dir") as aside:
        aside.mkdir()
        settings = yaml.safe_dump(config | {"output_dir": str(output)}, sort_keys=False, allow_unicode=True)
        (aside / "config.yaml").write_text(settings, encoding="utf-8")  # says where the base model is
        for name in ("edit", "refined", *(("pipeline",) if save_pipeline else ())):
            finished.write(name, aside / PLACES[name])
    return output


def _changed(model: dict[str, Any], changed: dict[str, float], stage: str) -> dict[str, float]:
    """The weights of a closed form, some of them changed."""
    terms = [field.name for field in fields(StageWeights)]
    kept = {"prior": model.get("prior"), "domain": model.get("domain") or model.get("domain_names")}
    for term, value in changed.items():
        if value and term in kept and not kept[term]:
            raise UserError(f"{stage}: {term}={value} has no effect: the run has no model.{term}. Fit it with one.")
        if term not in terms or value < 0:
            raise UserError(f"{stage}: {term}={value} must be one of {', '.join(terms)}, each at least 0.")
    given: dict[str, float] = model[stage]
    return given | changed


def _added(sums: Mapping[str, ConceptSums], loras: dict[str, Factors]) -> Factors:
    """Σ_i B_i A_i by layer, as one LoRA of all ranks."""
    factors = {}
    for name in next(iter(loras.values())):
        A, B = (torch.cat([loras[target][name][i].double() for target in sums], dim=i) for i in (0, 1))
        factors[name] = (A, B)
    return factors


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, and what the edit says it was made from."""
    if not (folder / "config.yaml").is_file() or not (folder / "edit.safetensors").is_file():
        raise UserError(f"run={folder} is no output folder of fit (config.yaml and edit.safetensors are missing).")
    with safe_open(str(folder / "edit.safetensors"), framework="pt") as file:
        made: dict[str, Any] = json.loads(file.metadata()["mace_pl"])
    if "method" in made:
        raise UserError(f"run={folder} was fused. Fuse the run of fit that it was made from, which has all concepts.")
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return config, made


def _check_files(model: Mapping[str, Any]) -> None:
    """Refuse statistics that are not there: of a run that is used from another folder than it was made in."""
    for name in ("prior", "domain"):
        given = model.get(name) or {}
        for file in [given] if isinstance(given, str) else given:
            if not resolve(file).is_file():
                raise UserError(
                    f"run: its model.{name}={file} does not exist below the working folder {Path.cwd()}. Run the "
                    f"command where the run was made, or correct the path in the config.yaml of the run."
                )


def _preservation(pipeline: Any, model: dict[str, Any], targets: list[str]) -> tuple[Preservation, Preservation]:
    from mace_pl.models.text_encoding import encode_prompts, encoder_fingerprint

    fingerprint, width = encoder_fingerprint(pipeline), int(encode_prompts(pipeline, [""]).shape[-1])
    weights = [StageWeights(**model[stage]) for stage in ("refine", "fuse")]
    stages = preservation(model.get("prior"), model.get("domain"), weights, fingerprint, width)
    named = named_statistics(pipeline, read_names(model.get("domain_names"), "model.domain_names"), targets)
    return with_domain(stages[0], named), with_domain(stages[1], named)
