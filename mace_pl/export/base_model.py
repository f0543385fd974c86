"""The folder of the base pipeline: what of it an edited pipeline takes over, file by file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.export.readable import make_readable
from mace_pl.files.artifacts import save_hashed, write_json
from mace_pl.files.tensors import check_finite
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source

#: under which names an original checkpoint holds a part; UNet and VAE begin alike in all families
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
#: files of weights, in shards or not, and the index of shards; with a variant as in ``model.fp16.safetensors``
WEIGHTS = re.compile(r"(?P<name>\w+)(\.(?P<variant>\w+))?(?P<end>(-\d+-of-\d+)?\.(safetensors|bin))")
INDEX = re.compile(r"(?P<name>\w+\.(safetensors|bin)\.index)(\.(?P<variant>\w+))?(?P<end>\.json)")


def stored_dtype(pipeline: Pipeline, source: Source, part: str) -> torch.dtype:
    """The dtype in which the base stores a part; that of the loaded part where its files do not tell."""
    base, single, variant = source.folder, source.file, source.variant
    files = list((base / part).glob("*.safetensors")) if base else []
    # variants have one more dot; without one of its own, a part is read from the plain files
    files.sort(key=lambda f: (f".{variant}." not in f.name, f.name.count("."), f.name))
    for file in [single] if single else files[:1]:
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                if single and not name.startswith(PREFIXES[part]):
                    continue
                tensor: Tensor = opened.get_tensor(name)
                if tensor.is_floating_point():
                    return tensor.dtype
    dtype: torch.dtype = getattr(pipeline, part).dtype
    return dtype


def write_pipeline(
    folder: Path, pipeline: Pipeline, source: Source, weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Write a diffusers folder that differs from the base's in the cross-attention keys and values only.

    Every other part is copied, the safety checker included. The UNet's files keep shards and dtypes. What is written
    loads without any setting: parts that the base has in a variant only get plain names, and :func:`make_readable`
    edits what programs of other versions would read differently.

    Args:
        folder: the new folder.
        pipeline: the pipeline, whose UNet holds the edited weights.
        source: the files that it was read from.
        weights: the edited projections by layer name.
        dtype: of the UNet's weights, to which the one in memory is cast too; as in the base when None.

    Raises:
        UserError: the base's UNet files do not hold the layers that were edited.
    """
    base = source.folder
    if base is None:
        _save(folder, pipeline, source, dtype)
    else:
        _copy(base, folder, [base / "model_index.json", *base.glob("LICENSE*"), *base.glob("NOTICE*")])
        _copy_parts(base, folder)
        _write_unet(base, folder, pipeline, weights, dtype, stored_dtype(pipeline, source, "unet"))
    for part in (path for path in folder.iterdir() if path.is_dir()):
        _plain_names(part, source.variant)
    make_readable(folder)
    index = folder / "model_index.json"  # one for img2img holds the same parts, but would not generate from text
    settings = json.loads(index.read_text(encoding="utf-8"))
    if settings["_class_name"] != type(pipeline).__name__:
        index.write_text(json.dumps(settings | {"_class_name": type(pipeline).__name__}, indent=2) + "\n", "utf-8")
    for file in [*folder.glob("*.json"), *folder.glob("*/*config.json")]:
        _without_place(file)


def _without_place(file: Path) -> None:
    """Take a path, which libraries note where they loaded a part from, out of a configuration."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    known = settings.get("_name_or_path") if isinstance(settings, dict) else None
    if isinstance(known, str) and (PurePosixPath(known).is_absolute() or PureWindowsPath(known).is_absolute()):
        del settings["_name_or_path"]
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_unet(
    base: Path,
    folder: Path,
    pipeline: Pipeline,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    stored: torch.dtype,
) -> None:
    """The UNet's files with the edited values; saved anew in another dtype, or where the base has pickles only."""
    files = sorted((base / "unet").glob("*.safetensors"))
    if dtype is not None or not files:
        backbone_of(pipeline).network.to(dtype or backbone_of(pipeline).network.dtype).save_pretrained(folder / "unet")
        return
    _copy(base, folder, [base / "unet" / "config.json"])
    kept = {
        name: tensor
        for name, tensor in backbone_of(pipeline).network.state_dict().items()
        if name.removesuffix(".weight") not in weights
    }
    values = {f"{name}.weight": weight for name, weight in weights.items()}
    left = set(values)
    for file in files:
        if _of_this_unet(file, kept, stored):
            left -= _rewrite(file, folder / "unet" / file.name, values)
    if left:
        raise UserError(f"pipeline: {base / 'unet'} holds no {min(left)}. Save the base with this diffusers.")
    for index in (base / "unet").glob("*.safetensors.index*.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if all((folder / "unet" / shard).is_file() for shard in shards):
            _copy(base, folder, [index])


def _of_this_unet(file: Path, kept: Mapping[str, Tensor], stored: torch.dtype) -> bool:
    """Whether a file holds this UNet in some precision, not other weights, such as those without moving averages.

    Args:
        file: beside the one that was read.
        kept: the tensors that no edit changes, by name.
        stored: dtype of the file that was read.
    """
    apart, size, coarse = 0.0, 0.0, torch.finfo(stored).eps
    with safe_open(str(file), framework="pt") as opened:
        for name in set(opened.keys()) & set(kept):
            tensor, loaded = opened.get_tensor(name), kept[name].cpu().double()
            if tensor.shape != loaded.shape:
                return False
            coarse = max(coarse, torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else coarse
            apart, size = apart + float((tensor.double() - loaded).square().sum()), size + float(loaded.square().sum())
    same: bool = apart**0.5 <= coarse * size**0.5
    return same


def _save(folder: Path, pipeline: Pipeline, source: Source, dtype: torch.dtype | None) -> None:
    """Save a pipeline that has no folder, in the dtypes of its checkpoint; what a layout gave it is copied."""
    if source.file:
        for part in ("vae", "text_encoder", "text_encoder_2"):
            if getattr(pipeline, part, None) is not None:
                getattr(pipeline, part).to(stored_dtype(pipeline, source, part))
        dtype = dtype or stored_dtype(pipeline, source, "unet")
    if dtype is not None:
        backbone_of(pipeline).network.to(dtype)
    pipeline.save_pretrained(folder)
    if source.layout:
        for part in ("tokenizer", "tokenizer_2", "scheduler"):
            files = [file for file in (source.layout / part).rglob("*") if file.is_file()]
            if files:
                shutil.rmtree(folder / part)
                _copy(source.layout, folder, files)


def rewrite_file(
    path: Path,
    file: Path,
    names: Mapping[str, list[str]],
    weights: Mapping[str, Tensor],
    header: Mapping[str, str],
) -> None:
    """Write a checkpoint that differs from the base's in the cross-attention keys and values only.

    Args:
        path: the new file.
        file: the single checkpoint of the base.
        names: original names of the UNet's parameters, with those of diffusers.
        weights: the edited projections by layer name.
        header: the metadata of the new file; that of the base's speaks of its old content and is left behind, as is
            a second copy of the UNet.

    Raises:
        UserError: the base's file does not hold the layers that were edited.
    """
    left = {f"{name}.weight": weight for name, weight in weights.items()}
    renamed = {original: left[own[0]] for original, own in names.items() if own[0] in left}
    missing = set(renamed) - _rewrite(file, path, renamed, header, without=is_copy(renamed))
    if missing or len(renamed) < len(left):
        raise UserError(f"single_file: {file} does not hold all edited layers {sorted(missing)}. Export pipeline.")


def is_copy(edited: Collection[str]) -> Callable[[str], bool]:
    """Whether a name of a checkpoint is of a second UNet, whose keys and values would stay as they were.

    Training keeps a moving average under ``model_ema.``, with the dots left out of the names.
    """
    ends = tuple(name.removeprefix(PREFIXES["unet"][0]).replace(".", "") for name in edited)

    def found(name: str) -> bool:
        return name.startswith("model_ema.") or (name not in edited and name.replace(".", "").endswith(ends))

    return found


def _copy_parts(base: Path, folder: Path) -> None:
    """Copy all parts but the UNet; one that the base lists and lacks, as a hub cache may, leaves the new index."""
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    listed = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    lacking = {name: [None, None] for name in listed if not (base / name).is_dir()}
    if lacking:
        (folder / "model_index.json").write_text(json.dumps(index | lacking, indent=2) + "\n", encoding="utf-8")
    for part in set(listed) - set(lacking) - {"unet"}:
        _copy(base, folder, [file for file in (base / part).rglob("*") if file.is_file()])


def _plain_names(part: Path, variant: str | None) -> None:
    """Take the variant out of the names of weights where a part has no others; ``variant`` is the one that was read."""
    files = [match for path in part.iterdir() if (match := WEIGHTS.fullmatch(path.name))]
    variants = sorted({match["variant"] or "" for match in files})
    if not variants or "" in variants:
        return
    chosen = variant if variant in variants else variants[0]
    for path in sorted(part.iterdir()):
        match = WEIGHTS.fullmatch(path.name) or INDEX.fullmatch(path.name)
        if match and match["variant"] == chosen:
            if match.re is INDEX:
                index = json.loads(path.read_text(encoding="utf-8"))
                renamed = {name: file.replace(f".{chosen}", "", 1) for name, file in index["weight_map"].items()}
                write_json(path, index | {"weight_map": renamed})
            path.rename(part / (match["name"] + match["end"]))


def _copy(base: Path, folder: Path, files: list[Path]) -> None:
    """Copy what the links of a hub cache point to, without permissions."""
    for file in files:
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _rewrite(
    source: Path,
    target: Path,
    weights: Mapping[str, Tensor],
    header: Mapping[str, str] | None = None,
    without: Callable[[str], bool] = lambda name: False,
) -> set[str]:
    """Copy a safetensors file with other values for the named tensors, in its dtypes; returns those it holds."""
    with safe_open(str(source), framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if not without(name)}  # noqa: SIM118
    edited = set(tensors) & set(weights)
    tensors |= {name: weights[name].detach().cpu().to(tensors[name].dtype).contiguous() for name in edited}
    check_finite({name: tensors[name] for name in edited}, target.name)
    if header is None:
        save_file(tensors, str(target), metadata={"format": "pt"})
    else:
        save_hashed(tensors, target, {"format": "pt", **header})
    return edited
