"""What images are generated of: rows of prompt and seed out of a file, or names in templates."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from mace_pl.data.batches import Batches
from mace_pl.data.caption_files import CaptionSource
from mace_pl.errors import Advice, UserError
from mace_pl.files.paths import resolve

log = logging.getLogger(__name__)

AUTO = "auto"
#: known columns, of which the first that is there is meant; and words in the names of others that may mean the same
SEEDS, SEED_WORDS = ("seed", "evaluation_seed", "sd_seed"), ("seed",)
GUIDANCES = ("guidance", "guidance_scale", "evaluation_guidance", "sd_guidance_scale")
GUIDANCE_WORDS = ("guidance", "cfg")
#: columns that other programs read, and the settings that say it here
DECIDE = {
    "negative": re.compile(r"(sd_)?negative(_prompt)?"),
    "height": re.compile(r"(sd_)?(image_)?height"),
    "width": re.compile(r"(sd_)?(image_)?width"),
    "steps": re.compile(r"(sd_)?(num_)?(inference_|sampling_)?steps"),
    "scheduler": re.compile(r"(sd_)?(scheduler|sampler)"),
}


class Prompts(LightningDataModule):
    """Prompts to generate images of, from a file or from names.

    Args:
        file: a CSV, JSON lines or Parquet with a column ``prompt``, a column of seeds and any others, which are kept;
            or captions as ``cache`` reads them (``.txt``, ``.json`` of COCO).
        column: the column of the prompts.
        seed_column: the column of the seeds; ``auto`` takes ``seed``, ``evaluation_seed`` or ``sd_seed``, the first
            that the file has; null takes none.
        guidance_column: the column of guidance scales, which go before ``model.guidance``; ``auto`` takes
            ``guidance``, ``guidance_scale``, ``evaluation_guidance`` or ``sd_guidance_scale``; null takes none.
        names: words that are put into ``templates``, in place of ``file``.
        templates: prompts with ``{}`` for the name.
        seeds: images per prompt, seeds 0 … seeds − 1, where no column brings seeds; a prompt that comes again gets
            the next seeds.
        limit: take the first so many rows; all when None.
        batch_size: images at once on a device; no image depends on it.
    """

    def __init__(
        self,
        file: str | None = None,
        column: str = "prompt",
        names: list[str] | None = None,
        templates: list[str] | None = None,
        seeds: int = 1,
        limit: int | None = None,
        batch_size: int = 20,
        seed_column: str | None = AUTO,
        guidance_column: str | None = AUTO,
    ) -> None:
        super().__init__()
        templates = ["a photo of a {}"] if templates is None else templates
        if (file is None) == (names is None):
            raise UserError("data needs prompts: give either --data.file or --data.names.")
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise UserError(f"data.templates={templates} must be prompts that contain {{}} once, where the name goes.")
        for name, value in (("seeds", seeds), ("batch_size", batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value} must be at least 1.")
        if names is not None:
            rows = named_rows(names, templates)
        else:
            rows = file_rows(str(file), column, {"seed": seed_column, "guidance": guidance_column})
        self.rows = list(islice(seeded(rows, seeds), limit))
        if not self.rows:
            raise UserError(f"data.file={file} holds no prompt. Give a file with at least one.")
        warn_of_equals(self.rows)
        self.batch_size = batch_size

    def predict_dataloader(self) -> Any:
        """The module's share: it knows which rows its folder holds."""
        assert self.trainer is not None
        return self.trainer.lightning_module.predict_dataloader()

    def share(self, done: Collection[int], rank: int, world: int) -> DataLoader[dict[str, Any]]:
        """Batches {index, prompt, seed: lists, guidance} of the rows that are left to a rank: every world-th.

        The rows of a batch have one guidance scale; it is None where the file has none.

        Args:
            done: rows that an earlier run has generated.
            rank: the rank.
            world: how many there are.
        """
        pending = [(i, row) for i, row in enumerate(self.rows) if i not in done]
        alike: dict[float | None, list[tuple[int, dict[str, Any]]]] = {}
        for i, row in pending[rank::world]:
            alike.setdefault(row.get("guidance"), []).append((i, row))
        batches = [
            {
                "index": [i for i, _ in part],
                "prompt": [row["prompt"] for _, row in part],
                "seed": [row["seed"] for _, row in part],
                "guidance": guidance,
            }
            for guidance, own in alike.items()
            for part in (own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size))
        ]
        return DataLoader(Batches(batches), batch_size=None)


def named_rows(names: list[str], templates: list[str]) -> Iterator[dict[str, Any]]:
    """Every name in every template."""
    if not names:
        raise UserError("data.names is empty. Give at least one name.")
    for template in templates:
        for name in names:
            yield {"prompt": template.replace("{}", name), "columns": {"name": name, "template": template}}


def file_rows(file: str, column: str, wanted: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    """The rows of a file: prompt, seed and guidance where columns bring them, and the other columns.

    Args:
        file: as in :class:`Prompts`.
        column: of the prompts.
        wanted: the columns of ``seed`` and ``guidance``: a name, ``auto`` or None.

    Raises:
        UserError: naming the file and the line: no such file, no prompt, or a seed or guidance that is no number.
    """
    if not resolve(file).is_file() and ".zip:" not in file:
        raise UserError(f"data.file={file} does not exist. Give a CSV with a column prompt, or a file of captions.")
    read = {"seed": seed_of, "guidance": guidance_of}
    layouts: dict[tuple[str, ...], dict[str, str]] = {}  # one, but JSON lines may have several
    first: dict[str, str] | None = None
    for where, prompt, row in CaptionSource(file, column, setting="data.file", whole=True).rows():
        layout = tuple(row)
        if layout not in layouts:
            name_unused([name for name in row if not any(name in known for known in layouts)], file, column)
            layouts[layout] = numbers_of(list(row), file, column, wanted)
        named = layouts[layout]
        first = named if first is None else first
        for what in first.keys() ^ named.keys():
            which, other = ("no ", "others have one") if what in first else ("a ", "others have none")
            raise UserError(f"data.file: {file}: {where} has {which}{what}, and {other}. Give all rows one, or none.")
        numbers = {
            what: read[what](row[column_name], f"data.file: {file}: {where}") for what, column_name in named.items()
        }
        others = {key: value for key, value in row.items() if key not in (column, *named.values())}
        yield {"prompt": prompt, **numbers, "columns": others}


def numbers_of(columns: list[str], file: str, column: str, wanted: Mapping[str, str | None]) -> dict[str, str]:
    """Which columns of a file hold the numbers ``seed`` and ``guidance``, by these names.

    Raises:
        UserError: a column that is not there, or one that may be meant and is not known.
    """
    known = {"seed": (SEEDS, SEED_WORDS), "guidance": (GUIDANCES, GUIDANCE_WORDS)}
    column_of = {}
    lower = {name.lower(): name for name in reversed(columns) if name != column}
    for what, (names, words) in known.items():
        chosen, option = wanted[what], f"data.{what}_column"
        if chosen is not None and chosen != AUTO:
            if chosen not in columns:
                shown = ", ".join(columns) or "none"
                raise UserError(f"{option}={chosen}: {file} has no such column, only {shown}. Name one, or null.")
            column_of[what] = chosen
        elif chosen == AUTO:
            like = [named for name, named in lower.items() if any(word in name for word in words)]
            fitting = [lower[name] for name in names if name in lower]
            if like and not fitting:
                raise UserError(
                    f"data.file: {file} has a column {like[-1]!r}, which may be the {what}. Name it with --{option}, "
                    f"or pass null where it is not."
                )
            column_of |= {what: fitting[0]} if fitting else {}
    if column_of:
        log.info(f"{file}: " + ", ".join(f"{what} from the column {named!r}" for what, named in column_of.items()))
    return column_of


def name_unused(columns: Collection[str], file: str, column: str) -> None:
    """Say which columns would decide the image elsewhere and do not here, and by which settings it is decided."""
    unused = {c: name for c in sorted(columns) for name, known in DECIDE.items() if known.fullmatch(c.lower())}
    unused.pop(column, None)
    if unused:
        settings = ", ".join(f"--model.{name}" for name in dict.fromkeys(unused.values()))
        warnings.warn(
            f"data.file: {file}: the columns {', '.join(unused)} are kept, but decide nothing: images are generated "
            f"by {settings}.",
            Advice,
            stacklevel=2,
        )


def seed_of(value: Any, where: str) -> int:
    """A whole number, which a spreadsheet may have written as 7.0.

    Raises:
        UserError: anything else, or one that is too large.
    """
    digits = re.fullmatch(r"\s*(-?\d+)(\.0*)?\s*", str(value))
    if digits is None:
        raise UserError(f"{where} has seed {value!r}, which is no whole number. Correct it.")
    seed = int(digits[1])
    if not 0 <= seed < 2**63:
        raise UserError(f"{where} has seed {seed}, which must be between 0 and 2^63 - 1. Correct it.")
    return seed


def guidance_of(value: Any, where: str) -> float:
    """A guidance scale.

    Raises:
        UserError: no number, or a negative one.
    """
    try:
        guidance = float(value)
    except (TypeError, ValueError):
        guidance = math.nan
    if not 0 <= guidance < math.inf:
        raise UserError(f"{where} has guidance {value!r}, which is no number of 0 or more. Correct it.")
    return guidance


def seeded(rows: Iterable[dict[str, Any]], seeds: int) -> Iterator[dict[str, Any]]:
    """Rows with their own seed once, others with each of ``seeds`` that no earlier row of the same prompt has."""
    earlier: Counter[str] = Counter()
    for row in rows:
        if "seed" in row:
            yield row
            continue
        first = earlier[row["prompt"]]
        for seed in range(first, first + seeds):
            yield {"prompt": row["prompt"], "seed": seed, **row}
        earlier[row["prompt"]] += seeds


def warn_of_equals(rows: Iterable[dict[str, Any]]) -> None:
    """Say how many rows generate the image of another one."""
    counts = Counter((row["prompt"], row["seed"], row.get("guidance")) for row in rows)
    (prompt, seed, _), most = counts.most_common(1)[0]
    if most > 1:
        more = counts.total() - len(counts)
        warnings.warn(
            f"data: {more} of {counts.total()} rows generate the image of another row, as {prompt!r} with seed {seed}, "
            f"which is there {most} times. Give rows of one prompt different seeds, or drop them.",
            Advice,
            stacklevel=2,
        )
