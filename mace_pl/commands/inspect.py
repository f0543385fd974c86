"""Show what statistics were made from, and their spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, written_aside
from mace_pl.files.paths import resolve
from mace_pl.files.screen import screen
from mace_pl.methods.gram_statistics import load_pooled, load_statistics


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of a Gram matrix, largest first, and what follows from them.

    Attributes:
        eigenvalues: [D], float64.
        rank: eigenvalues above D · eps · the largest one, eps being float64's.
        condition: the largest over the smallest eigenvalue; infinite below full rank.
        trace: their sum.
    """

    eigenvalues: Tensor
    rank: int
    condition: float
    trace: float


def spectrum(gram: Tensor) -> Spectrum:
    """The spectrum of a symmetric matrix [D, D]."""
    values = torch.linalg.eigvalsh(gram.double()).flip(0)
    bound = values[0].abs() * len(values) * torch.finfo(torch.float64).eps
    rank = int((values > bound).sum())
    condition = float(values[0] / values[-1]) if rank == len(values) else float("inf")
    return Spectrum(values, rank, condition, float(values.sum()))


def inspect_statistics(file: str, plot: bool | str = True, overwrite: bool = False) -> Spectrum:
    """Print provenance and spectrum of statistics, and plot the eigenvalues.

    Args:
        file: the file.
        plot: the PNG to write; true puts it beside the file, or of a model's own statistics into the working folder;
            false writes none.
        overwrite: replace the PNG where it exists.

    Raises:
        UserError: no file of statistics, or a plot that exists or cannot be written.
    """
    path = resolve(file)
    gram, metadata = load_statistics(path, "file")
    result = spectrum(gram)
    pooled = load_pooled(path, "file")
    print_metadata(path, metadata | ({} if pooled is None else {"pooled embeddings": f"width {len(pooled):,}"}))
    print_spectrum(result, metadata)
    if plot:
        of_model = (path.parent.parent / "model_index.json").is_file()  # in whose folder nothing is written
        beside = Path(path.with_suffix(".png").name) if of_model else path.with_suffix(".png")
        image = beside if plot is True else Path(str(plot))
        if image.suffix != ".png":
            raise UserError(f"plot={plot} must end with .png.")
        try:
            claim_output(image, overwrite, setting="plot")
        except ValueError as error:
            raise UserError(f"{error} --plot false writes none.") from error
        plot_eigenvalues(result, path.name, image)
        print(f"Eigenvalues plotted to {image}")
    return result


def print_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Print where the sums come from, a row for each entry and each source."""
    table = Table(title=str(path), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # hashes are shown whole
    for key, value in metadata.items():
        if key not in ("sources", "kind"):
            table.add_row(key.replace("_", " "), "unknown" if value is None else str(value))
    for source in metadata.get("sources", []):
        parts = [f"{key} {value}" for key, value in source.items() if key != "source" and value is not None]
        table.add_row("source", f"{source['source']}\n" + "\n".join(parts))
    screen().print(table)


def print_spectrum(result: Spectrum, metadata: dict[str, Any]) -> None:
    """Print numerical rank, condition number, and the trace per token where tokens were counted once each."""
    table = Table(title="Spectrum", show_header=False)
    table.add_row("numerical rank", f"{result.rank:,} of {len(result.eigenvalues):,}")
    table.add_row("condition number", f"{result.condition:.4g}")
    table.add_row("largest eigenvalue", f"{float(result.eigenvalues[0]):.4g}")
    table.add_row("smallest eigenvalue", f"{float(result.eigenvalues[-1]):.4g}")
    weighted = any(source.get("weight", 1.0) != 1.0 for source in metadata.get("sources", []))
    if weighted or metadata["tokens"] is None:
        table.add_row("trace", f"{result.trace:.4g} ({'weighted sum' if weighted else 'number of tokens unknown'})")
    else:
        table.add_row("trace per token", f"{result.trace / metadata['tokens']:.4g}")
    screen().print(table)


def plot_eigenvalues(result: Spectrum, title: str, image: Path) -> None:
    """Write the positive eigenvalues on a logarithmic axis as a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen, and without touching pyplot's backend
    axes = figure.subplots()
    positive = result.eigenvalues[result.eigenvalues > 0]
    axes.semilogy(range(1, len(positive) + 1), positive.tolist())
    axes.axvline(result.rank, color="grey", linestyle=":", label=f"numerical rank {result.rank}")
    axes.set(xlabel="eigenvalue", ylabel="size", title=title)
    axes.legend(fontsize="small")
    with written_aside(image) as aside:
        figure.savefig(aside, dpi=120, format="png")
