"""Add statistics that were made apart: shards from several machines, or domains with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, write_tensors
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.paths import resolve
from mace_pl.methods.gram_statistics import KIND, POOLED, load_pooled, load_statistics
from mace_pl.version import __version__

ALIKE = {"encoder": "text encoder", "token_choice": "choice of tokens"}  # what files that are added must share


def merge_statistics(
    files: list[str],
    output: str,
    weights: list[float] | None = None,
    allow_overlap: bool = False,
    overwrite: bool = False,
) -> Path:
    """Add statistics of one text encoder: Σ weight · P.

    Args:
        files: the files to add, at least two.
        output: the ``.safetensors`` file to write.
        weights: a weight for each file; 1 each when left out.
        allow_overlap: add files that were made from the same source.
        overwrite: replace ``output`` where it exists.

    Returns:
        The file that was written.

    Raises:
        UserError: files that do not fit each other or overlap, or weights that do not fit the files.
    """
    weights = [1.0] * len(files) if weights is None else weights
    path = Path(output)
    check_arguments(files, weights, path)
    claim_output(path, overwrite, setting="output")
    refuse_inputs(path, [("file to add", file) for file in files], "output")
    total: Tensor | None = None
    pooled: list[Tensor | None] = []
    merged: dict[str, Any] = {}
    for file, weight in zip(files, weights, strict=True):
        gram, metadata = load_statistics(resolve(file), "files")
        own = load_pooled(resolve(file), "files")
        pooled.append(None if own is None else weight * own)
        for source in metadata.get("sources", []):
            source["weight"] = weight * source.get("weight", 1.0)
        if total is None:
            total, merged = weight * gram, metadata
            continue
        check_fit(file, metadata, files[0], merged, allow_overlap)
        total += weight * gram
        merged = joined(merged, metadata)
    assert total is not None
    merged |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "merged": [{"file": Path(file).name, "weight": weight} for file, weight in zip(files, weights, strict=True)],
    }
    write_tensors(path, {"gram": total} | merged_pooled(pooled), KIND, without_header(merged))
    return path


def merged_pooled(pooled: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The weighted sums of pooled embeddings, added; none where a file has none, which is said."""
    whole = [sums for sums in pooled if sums is not None]
    if 0 < len(whole) < len(pooled):
        print("Left out: sums of SDXL's pooled embeddings, which not all of the files have.")
    return {POOLED: torch.stack(whole).sum(0)} if len(whole) == len(pooled) else {}


def check_arguments(files: list[str], weights: list[float], output: Path) -> None:
    """Refuse too few files, weights that do not fit them, and an output of another kind.

    Raises:
        UserError: one of these.
    """
    if len(files) < 2:
        raise UserError(f"files={files} must name at least two files.")
    if len(weights) != len(files) or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise UserError(f"weights={weights} must be one number of 0 or more for each of the {len(files)} files.")
    if output.suffix != ".safetensors":
        raise UserError(f"output={output} must end with .safetensors.")


def check_fit(file: str, metadata: dict[str, Any], first: str, merged: dict[str, Any], allow_overlap: bool) -> None:
    """Refuse a file that cannot be added to those before it.

    Raises:
        UserError: another encoder or choice of tokens, or a source that is in them already.
    """
    for key, name in ALIKE.items():
        if metadata.get(key, "all") != merged.get(key, "all"):
            raise UserError(
                f"files: {file} has another {name} than {first} ({str(metadata.get(key))[:12]}, not "
                f"{str(merged.get(key))[:12]}). Their sums cannot be added."
            )
    known = {source["sha256"]: source["source"] for source in merged.get("sources", [])}
    for source in metadata.get("sources", []):
        if source["sha256"] in known and not allow_overlap:
            raise UserError(
                f"files: {file} was made from {source['source']}, which has the same content as "
                f"{known[source['sha256']]} in the files before it: its captions would count twice. Leave one out, or "
                f"pass --allow_overlap true."
            )


def joined(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """The provenance of a sum; counts that one side does not know are unknown (None)."""
    result = dict(left)
    for key in ("captions", "distinct_captions", "tokens"):
        both = (left.get(key), right.get(key))
        result[key] = None if None in both else both[0] + both[1]  # type: ignore[operator]
    result["sources"] = [*left.get("sources", []), *right.get("sources", [])]
    result["precision"] = "+".join(
        sorted({*str(left.get("precision")).split("+"), *str(right.get("precision")).split("+")})
    )
    result["processes"] = left.get("processes", 1) + right.get("processes", 1)
    if "imported" in right:
        result["imported"] = right["imported"]
    return result


def without_header(metadata: dict[str, Any]) -> dict[str, Any]:
    """The provenance without what is written for every file."""
    return {key: value for key, value in metadata.items() if key not in ("kind", "format_version")}
