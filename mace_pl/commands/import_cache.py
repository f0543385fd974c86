"""Read a cache of the published layout: for each matrix W_i the products W_i P and P, as one file of tensors.

The layout (a fact of the published files): a dict with ``{i}_for_mat1`` = W_i P [O_i, D] and ``{i}_for_mat2`` = P
[D, D] for the keys and values of all cross-attentions, 32 in Stable Diffusion 1.x.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, write_tensors
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.paths import resolve
from mace_pl.methods.gram_statistics import KIND
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline, unet_fingerprint
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import encode_prompts, encoder_fingerprint
from mace_pl.version import __version__

KEY = re.compile(r"(\d+)_for_mat([12])")
TOLERANCE = 1e-2  # relative Frobenius norm: published sums were made in float32 or less, on other machines
AGREE = 1e-4  # likewise, between the copies of P in one file


@dataclass
class ImportModel:
    """The model that a cache is checked against.

    Args:
        pretrained: folder, hub id or single checkpoint of the pipeline that the cache was made for.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder with the configurations of a single checkpoint's parts.
    """

    pretrained: str
    revision: str | None = None
    variant: str | None = None
    layout: str | None = None


def import_cache(cache: str, model: ImportModel, output: str, overwrite: bool = False) -> Path:
    """Turn a cache of the published layout into a file of statistics, after checking that it belongs to the model.

    Args:
        cache: the ``.pt`` file. Only tensors are loaded from it, never code.
        model: the model.
        output: the ``.safetensors`` file to write.
        overwrite: replace ``output`` where it exists.

    Returns:
        The file that was written.

    Raises:
        UserError: the cache cannot be read or does not fit; the message says why.
    """
    target = Path(output)
    if target.suffix != ".safetensors":
        raise UserError(f"output={output} must end with .safetensors.")
    path = resolve(cache)
    refuse_inputs(target, [("base model", model.pretrained), ("cache", path)], "output")
    claim_output(target, overwrite, setting="output")
    products, grams = read_cache(path)
    pipeline = load_pipeline(model.pretrained, model.revision, model.variant, model.layout)
    width = int(encode_prompts(pipeline, [""]).shape[-1])
    P, spread = agreed_gram(grams, width)
    deviation, order = check_products(products, list(backbone_of(pipeline).key_values().values()), P)
    print(f"{len(products)} matrices fit ({order}); largest relative deviation: W P {deviation:.2e}, P {spread:.2e}")
    checks = {"matrices": len(products), "order": order, "deviation": deviation, "deviation_of_gram": spread}
    metadata = provenance(path, pipeline, str(grams[0].dtype).removeprefix("torch."), checks)
    write_tensors(target, {"gram": P}, KIND, metadata)
    return target


def provenance(path: Path, pipeline: Pipeline, precision: str, checks: dict[str, Any]) -> dict[str, Any]:
    """What is known of imported sums: the file, the model that it fits, and how well."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "encoder": encoder_fingerprint(pipeline),
        "captions": None,  # the layout does not tell
        "distinct_captions": None,
        "tokens": None,
        "token_choice": "all",
        "sources": [{"source": path.name, "sha256": digest, "captions": None, "limit": None}],
        "precision": precision,
        "processes": 1,
        "imported": {"layout": "for_mat1/for_mat2", "unet": unet_fingerprint(backbone_of(pipeline).network), **checks},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }


def read_cache(path: Path) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The products W_i P and the copies of P by index.

    Raises:
        UserError: no readable file of tensors, or not of the layout.
    """
    if not path.is_file():
        raise UserError(f"cache: {path} is no file. Give the path of a cache of the published layout.")
    layout = "Expected a dict of tensors named 0_for_mat1, 0_for_mat2, 1_for_mat1, ..."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cache: {path} cannot be loaded as tensors only ({reason}). {layout}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"cache: {path} holds {type(content).__name__}. {layout}")
    parts: dict[str, dict[int, Tensor]] = {"1": {}, "2": {}}
    for key, value in content.items():
        match = KEY.fullmatch(str(key))
        if match is None or not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point():
            raise UserError(f"cache: {path} has an entry {key!r} that is no matrix of the layout. {layout}")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"cache: {path} has values in {key!r} that are not finite.")
        parts[match[2]][int(match[1])] = value
    products, grams = parts["1"], parts["2"]
    missing = {f"{i}_for_mat1" for i in grams.keys() - products} | {f"{i}_for_mat2" for i in products.keys() - grams}
    missing |= {f"{i}_for_mat1" for i in range(max(products, default=0) + 1) if i not in products}
    if missing:
        raise UserError(f"cache: {path} has no {', '.join(sorted(missing))}. {layout}")
    return products, grams


def agreed_gram(grams: dict[int, Tensor], width: int) -> tuple[Tensor, float]:
    """P [D, D] in float64 and exactly symmetric, from its copies; and their largest relative deviation from it.

    Raises:
        UserError: another width, copies that differ, or a matrix that is no sum of e eᵀ.
    """
    for index, copy in grams.items():
        if tuple(copy.shape) != (width, width):
            raise UserError(
                f"cache: {index}_for_mat2 has shape {tuple(copy.shape)}, model.pretrained has text embeddings of width "
                f"{width}. Give the model that the cache was made for."
            )
    P = grams[min(grams)].double()
    P = (P + P.T) / 2
    deviations = {index: relative(copy.double(), P) for index, copy in grams.items()}
    worst = max(deviations, key=deviations.__getitem__)
    if not deviations[worst] <= AGREE:
        raise UserError(
            f"cache: {worst}_for_mat2 deviates by {deviations[worst]:.2e} from {min(grams)}_for_mat2 or from its own "
            f"transpose, where at most {AGREE:.0e} is expected: they are not the same P."
        )
    values = torch.linalg.eigvalsh(P)
    if not values[-1] > 0 or values[0] < -AGREE * values[-1]:
        raise UserError(f"cache: for_mat2 has eigenvalues from {values[0]:.2e} to {values[-1]:.2e}: no sum of e eᵀ.")
    return P, deviations[worst]


def check_products(products: dict[int, Tensor], matrices: list[Tensor], P: Tensor) -> tuple[float, str]:
    """Whether every W_i P of a file is that of a matrix of the model.

    Args:
        products: W_i P by index.
        matrices: the model's W_i [O_i, D] in the order of its UNet, keys before values in each layer.
        P: [D, D], float64.

    Returns:
        The largest relative deviation (Frobenius norm), and in which order the file has the matrices.

    Raises:
        UserError: another number of matrices, or one that is not the model's.
    """
    hint = "Give the model that the cache was made for."
    if len(products) != len(matrices):
        raise UserError(f"cache: it has {len(products)} matrices, model.pretrained has {len(matrices)}. {hint}")
    expected = [W.double() @ P for W in matrices]
    stored = [products[index].double() for index in sorted(products)]
    deviations = [relative(a, b) for a, b in zip(stored, expected, strict=True)]
    if max(deviations) <= TOLERANCE:
        return max(deviations), "UNet order"
    every = torch.tensor([[relative(a, b) for b in expected] for a in stored])
    least, chosen = every.min(1)
    worst = int(least.argmax())
    if not least[worst] <= TOLERANCE:
        raise UserError(
            f"cache: {worst}_for_mat1 deviates by {float(least[worst]):.2e} from W P of every matrix of "
            f"model.pretrained, where at most {TOLERANCE:.0e} is expected. {hint}"
        )
    for index, match in enumerate(chosen.tolist()):
        first = chosen.tolist().index(match)
        if first < index:
            raise UserError(f"cache: {first}_for_mat1 and {index}_for_mat1 are W P of the same matrix. {hint}")
    return float(least[worst]), "another order"


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖, infinite where the shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).norm() / expected.norm())
