"""Closed forms of 1 to 1,000 concepts at the shapes of SD 1.4, SD 2.1 and SDXL, beside the textbook form per layer.

Run it as ``python benchmarks/methods.py``: SD 1.4; ``--family sd2`` and ``--family sdxl`` for the others. The weights
of the keys and values and all embeddings are random. Each method sums its tokens as a run does, solves from the sums,
and so do UCE and SPEED by the textbook (``reference.py``): every concept and every solve for each layer. The textbook
is timed on some of the layers and scaled to all. How long the text encoder takes is its speed on some prompts, with
the real architecture and random weights, times the distinct prompts of a method. What was scaled has a ≈.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from common import Peak, alone, quiet, show_table
from encoders import text_pipeline
from jsonargparse import auto_cli
from reference import textbook_speed, textbook_uce
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods import CURE, OCE, RECE, SPEED, UCE, MaceRefinement, NullSpace
from mace_pl.methods.base import ClosedForm, Sums
from mace_pl.methods.closed_form import Preservation, gram
from mace_pl.methods.edit import Edit, Pairs, SumsOnDisk
from mace_pl.methods.retained import centres
from mace_pl.models.encoded_once import encoded_once
from mace_pl.models.text_encoding import encode_both

Family = Literal["sd1", "sd2", "sdxl", "toy"]
SIZES = [320] * 5 + [640] * 5 + [1280] * 6  # rows of a key or a value of each cross-attention
SHAPES: dict[str, tuple[int, list[int]]] = {
    "sd1": (768, SIZES),
    "sd2": (1024, SIZES),
    "sdxl": (2048, [640] * 10 + [1280] * 60),
    "toy": (24, [16, 40]),
}
METHODS: dict[str, ClosedForm] = {
    "MaceRefinement": MaceRefinement(),
    "UCE": UCE(),
    "RECE": RECE(),
    "SPEED": SPEED(),
    "NullSpace": NullSpace(),
    "CURE": CURE(),
    "OCE": OCE(),
    "SPEED layers": SPEED("layers"),
}
PROMPTS, TOKENS = 30, 77  # of a concept; of a prompt
LARGEST_ERROR = 0.1  # relative, of an edit against the textbook's inverse in float32, at a condition of a million
IDENTITY = 0.5


class Given:
    """Random weights, tokens of concepts and of names that stay.

    Args:
        family: whose shapes.
        names: that stay.
    """

    def __init__(self, family: Family, names: int) -> None:
        self.width, outputs = SHAPES[family]
        self.mean = self.random(0, self.width)
        self.layers = {
            f"{i}.attn2.to_{kind}": self.random(10 + 2 * i + (kind == "v"), rows, self.width) * self.width**-0.5
            for i, rows in enumerate(outputs)
            for kind in "kv"
        }
        self.names, self.blank = self.tokens(1, names), self.tokens(2, TOKENS)
        self.preservation = Preservation(IDENTITY, domain=gram(self.names, self.names), domain_weight=1.0)

    def random(self, seed: int, *shape: int) -> Tensor:
        """Values from a seed."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def tokens(self, seed: int, count: int) -> Tensor:
        """[count, D]; they share a mean, as embeddings do."""
        return self.mean + self.random(seed, count, self.width)

    def pairs(self, method: ClosedForm, concept: int) -> Pairs:
        """The tokens that a method pairs of a concept and its anchor; there are ten anchors."""
        count = {"last": 1, "bare": TOKENS}.get(method.tokens, PROMPTS * (TOKENS - 1))
        anchor = self.tokens(500 + concept % 10, count) if method.anchored else torch.zeros(count, self.width)
        return Pairs(self.tokens(1000 + concept, count), anchor)

    def sums(self, total: Any) -> Sums:
        """What a method is solved from."""
        keep, pairs = self.preservation, float(total.pairs)
        return Sums(total.F, total.G, keep, self.layers, pairs, self.names.double(), self.blank.double())


def summed(given: Given, method: ClosedForm, concepts: int) -> tuple[Sums, float]:
    """The sums as a run makes them, and the seconds without the making of tokens."""
    seconds, sums = 0.0, SumsOnDisk()
    for concept in range(concepts):
        pairs = given.pairs(method, concept)
        started = time.perf_counter()
        sums.add(str(concept), pairs if pairs.few else pairs.sums())
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    total = sums.total
    return given.sums(total), seconds + time.perf_counter() - started


def textbook(given: Given, name: str, concepts: int, layers: list[str]) -> Iterator[Tensor]:
    """Edited weights of some layers by the textbook's form of UCE or SPEED."""
    pairs = [given.pairs(METHODS[name], concept) for concept in range(concepts)]
    targets, anchors = torch.cat([own.target for own in pairs]), torch.cat([own.anchor for own in pairs])
    fixed = torch.cat([given.blank[:1], centres(given.blank[1:], 3).float()])
    for layer in layers:
        W = given.layers[layer]
        if name == "UCE":
            yield textbook_uce(W, targets, anchors, given.names, IDENTITY)
        else:
            yield textbook_speed(W, targets, anchors, given.names, fixed)


def some_layers(given: Given, name: str, count: int) -> list[str]:
    """Layers of all sizes, evenly; values alone for SPEED."""
    edited = [layer for layer in given.layers if name == "UCE" or layer.endswith("to_v")]
    return edited[:: max(1, len(edited) // count)][:count]


def measure(
    family: Family, concepts: int, names: int, largest: int, textbook_layers: int, only: list[str]
) -> list[dict[str, Any]]:
    """Seconds and peaks of each method at one number of concepts, and those of the textbook."""
    given, rows = Given(family, names), []
    torch.linalg.eigh(torch.eye(64, dtype=torch.float64))  # libraries are there before anything is timed
    edits: dict[str, Edit] = {}
    for name, method in METHODS.items():
        if name not in only:
            continue
        counted = min(concepts, largest) if method.tokens == "coexisting" else concepts
        peak = Peak()
        sums, seconds = summed(given, method, counted)
        started = time.perf_counter()
        refused = False
        try:
            edits[name] = method.solve(sums)
        except UserError:  # more targets than dimensions, as NullSpace says
            refused = True
        solve = time.perf_counter() - started
        memory = (peak.bytes() - peak.before) / 2**20
        row = {"method": name, "solve": solve, "sum": seconds * concepts / counted, "memory": memory}
        rows.append(row | {"scaled": counted < concepts, "refused": refused})
    for name in ("UCE", "SPEED layers"):
        if name not in only:
            continue
        chosen = some_layers(given, name, textbook_layers)
        peak, started = Peak(), time.perf_counter()
        found = dict(zip(chosen, textbook(given, name, concepts, chosen), strict=True))
        seconds = time.perf_counter() - started
        edited = [layer for layer in given.layers if name == "UCE" or layer.endswith("to_v")]
        error = difference(given, edits[name], found) if name == "UCE" else None
        memory = (peak.bytes() - peak.before) / 2**20
        row = {"method": f"textbook {name.split()[0]}", "solve": seconds * len(edited) / len(chosen), "sum": 0.0}
        rows.append(row | {"memory": memory, "scaled": len(chosen) < len(edited), "error": error})
    return rows


def difference(given: Given, edit: Edit, found: dict[str, Tensor]) -> float:
    """The largest relative difference of the change of a layer between the two forms.

    Raises:
        ValueError: it is no rounding.
    """
    weights = edit.weights({layer: given.layers[layer] for layer in found})
    errors = [float((weights[k] - W).norm() / (W - given.layers[k]).norm()) for k, W in found.items()]
    if not max(errors) < LARGEST_ERROR:
        raise ValueError(f"the two forms of UCE differ by {max(errors):.1e}")
    return max(errors)


def encoding(family: Family, concepts: int, method: ClosedForm, folder: str) -> tuple[float, int]:
    """Seconds that the text encoder takes for the prompts of a method, and how many these are."""
    pipeline = text_pipeline(family, Path(folder))
    templates = ["{}"] if method.tokens in ("last", "bare") else [f"a photo {i} of a {{}}" for i in range(PROMPTS)]
    requests = [
        [t.replace("{}", name) for t in templates for name in (f"ship {i}", *([f"house {i % 10}"] * method.anchored))]
        for i in range(concepts)
    ]
    encode_both(pipeline, ["a photo"])
    started = time.perf_counter()
    for _ in encoded_once(lambda prompts: encode_both(pipeline, prompts), requests):
        pass
    return time.perf_counter() - started, len({prompt for request in requests for prompt in request})


def benchmark(
    family: Family = "sd1",
    concepts: list[int] | None = None,
    names: int = 100,
    methods: list[str] | None = None,
    encode: bool = True,
    most_prompts: int = 200,
    largest_summed: int = 100,
    textbook_layers: int = 4,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Print a table for each number of concepts.

    Args:
        family: ``sd1`` (SD 1.4, width 768), ``sd2`` (SD 2.1, 1024), ``sdxl`` (2048), or ``toy``.
        concepts: how many are erased, each a table; 1, 10, 100 and 1,000 when left out.
        names: that stay.
        methods: of the table; all when left out.
        encode: measure the text encoder too.
        most_prompts: that the text encoder is timed on; seconds of more are scaled.
        largest_summed: concepts that are summed where a method sums all prompts; seconds of more are scaled.
        textbook_layers: layers that the textbook form is timed on; its seconds are scaled to all.
        threads: threads of torch; its own choice when left out.
    """
    quiet()
    if threads:
        torch.set_num_threads(threads)
    only, everything = methods or list(METHODS), []
    with tempfile.TemporaryDirectory() as folder:
        speed = alone(speed_of_encoding, family, folder, most_prompts) if encode else None
        for count in concepts or [1, 10, 100, 1000]:
            rows = alone(measure, family, count, names, largest_summed, textbook_layers, only)
            everything += [row | {"concepts": count} for row in rows]
            show(family, count, names, rows, speed)
    return everything


def speed_of_encoding(family: Family, folder: str, most: int) -> float:
    """Seconds of a prompt in full batches."""
    seconds, prompts = encoding(family, most, UCE(), folder)
    return seconds / prompts


def prompts_of(method: ClosedForm, concepts: int) -> int:
    """How many distinct prompts a method encodes of concepts with ten anchors."""
    each = 1 if method.tokens in ("last", "bare") else PROMPTS
    return each * (concepts + (min(concepts, 10) if method.anchored else 0))


def show(family: Family, concepts: int, names: int, rows: list[dict[str, Any]], speed: float | None) -> None:
    """Print a table; what was scaled has a ≈."""
    books = {row["method"].split()[1]: row["solve"] for row in rows if row["method"].startswith("textbook")}
    lines = []
    for row in rows:
        name, about = row["method"], "≈" if row["scaled"] else ""
        own = row["solve"] + row["sum"]
        book = books.get(name.split()[0]) if name in METHODS else None
        faster = f"{book / own:,.0f} ({book / row['solve']:,.0f})" if book else "–"
        encoded = speed * prompts_of(METHODS[name], concepts) if speed and name in METHODS else None
        shares = ["–", "–"] if encoded is None else [f"≈{encoded:,.1f}", f"{encoded / (encoded + own):.0%}"]
        solve = f"{about if name not in METHODS else ''}{row['solve']:,.3f}"
        solve += " refused" if row.get("refused") else ""
        summing = f"{about}{row['sum']:,.3f}" if name in METHODS else "–"
        lines.append([name, solve, summing, *shares, f"{row['memory']:,.0f}", faster])
    columns = ["method", "solve s", "sum s", "encode s", "share of encoding", "peak MB", "times faster (solve alone)"]
    show_table(f"{concepts:,} concept(s), shapes of {family}, {names} names stay", columns, lines)
    for row in rows:
        if row.get("error") is not None:
            print(f"largest relative difference of UCE from the textbook form {row['error']:.1e}")


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
