"""What ``test`` leaves behind: figures as JSON, a table in Markdown and on the screen, a report, a logger's scalars."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from diffusers.utils import make_image_grid
from lightning.fabric.loggers.logger import Logger
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from mace_pl.data.evaluation_prompts import EvaluationPrompts
from mace_pl.errors import UserError
from mace_pl.evaluation.compared import ScoredModels
from mace_pl.evaluation.emptiness import EMPTY
from mace_pl.evaluation.erasure_scores import LEVEL, SAMPLES
from mace_pl.evaluation.html_report import html_page
from mace_pl.evaluation.judges import CLIP
from mace_pl.evaluation.report_images import ORIGINAL, Gallery
from mace_pl.evaluation.score_tables import ScoreTable, score_tables
from mace_pl.evaluation.words import Words
from mace_pl.files.artifacts import claim_output, write_json, written_aside
from mace_pl.files.markdown import markdown_table
from mace_pl.files.owned import refuse_inputs, refuse_inside_run
from mace_pl.files.paths import model_name, place_name
from mace_pl.files.screen import screen
from mace_pl.images.files import read_images
from mace_pl.models.protocols import Pipeline
from mace_pl.training.loggers import log_image

WORST = 5  # preserved concepts on the screen


def claim_scores(output: Path, overwrite: bool, pretrained: str) -> None:
    """Refuse a file of figures that cannot be written, or that lies in a run or in the base model.

    Raises:
        UserError: naming the setting and what is wrong.
    """
    setting = "model.output"
    if output.suffix != ".json":
        raise UserError(f"{setting}={output} must end in .json. Write {output.with_suffix('.json')}.")
    claim_output(output, overwrite, setting)
    refuse_inside_run(output, setting)
    refuse_inputs(output, [("base model", pretrained)], setting)


class Scoring(Protocol):
    """What scored the models, such as ErasureScores.

    Attributes:
        pretrained: the original pipeline.
        pipeline: it, loaded.
        models: it and what was made from it.
        runs: where those lie, by name.
        classifier: folder of the CLIPModel.
        labels: of the judges, the first one's scores first.
        chosen_by: the judge by which settings of the runs were chosen.
        features: what FID, KID and the distance see of an image.
        reference: folder of images for FID and KID; those of the original model when None.
        kid_subset: images in each of KID's subsets.
        words: names and classes.
        scheduler: that generated with all models; each model's own when None.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
    """

    pretrained: str
    pipeline: Pipeline
    models: ScoredModels
    runs: dict[str, str]
    classifier: str
    labels: list[str]
    chosen_by: str | None
    features: nn.Module
    reference: str | None
    kid_subset: int
    words: Words
    scheduler: str | None
    steps: int
    guidance: float


def settings_of(module: Scoring, data: EvaluationPrompts) -> dict[str, Any]:
    """Everything that is needed to repeat the scores."""
    return {
        "pretrained": model_name(module.pretrained),
        "fingerprints": module.models.fingerprints,
        "runs": {
            name: {
                "folder": place_name(run),
                "targets": module.models.targets[name],
                "anchors": list(module.models.anchors[name].values()),
            }
            for name, run in module.runs.items()
        },
        "classifier": place_name(module.classifier),
        "judge": None if module.labels == [CLIP] else module.labels[0],
        "judges": module.labels,
        "chosen_by": module.chosen_by,
        "features": type(module.features).__name__,
        "reference": None if module.reference is None else place_name(module.reference),
        "kid_subset": module.kid_subset,
        "names": module.words.names,
        "classes": module.words.classes,
        "empty": f"contrast below {EMPTY}",
        "synonyms": module.words.synonyms,
        "templates": data.templates,
        "seeds": data.seeds,
        "first_seed": data.first_seed,
        **{kind: None if file is None else place_name(file) for kind, file in data.files.items()},
        "scheduler": module.scheduler or type(module.pipeline.scheduler).__name__,
        "steps": module.steps,
        "guidance": module.guidance,
        "intervals": f"percentile bootstrap over seeds, {SAMPLES} samples, {LEVEL:.0%}",
    }


def write_scores(output: Path, content: dict[str, Any], gallery: Gallery, loggers: Sequence[Logger]) -> None:
    """Write and show everything; called on one rank.

    Args:
        output: the JSON file; table and report lie beside it.
        content: ``settings``, as :func:`settings_of` gives them, ``scores`` and perhaps ``ablation``.
        gallery: images of each model; its folder is removed.
        loggers: of the Trainer.
    """
    scores = content["scores"]
    write_json(output, content)
    tables = score_tables(scores, content["settings"]["chosen_by"])
    markdown, page = output.with_suffix(".md"), output.with_suffix(".html")
    said = [
        markdown_table(table.columns, table.rows) + "".join(f"\n\n{note}" for note in table.notes) for table in tables
    ]
    markdown.write_text("\n\n".join(said) + "\n", encoding="utf-8")
    with written_aside(page) as aside:
        aside.write_text(html_page(content, gallery), encoding="utf-8")
    for logger in loggers:
        log_scores(logger, scores, gallery)
    shutil.rmtree(gallery.folder, ignore_errors=True)  # a folder of its own; the page holds its images
    console = screen()
    for table in tables:
        show_table(console, table)
    show_worst(console, scores)
    console.print(f"Written to {output}, {markdown} and {page}", highlight=False)


def show_table(console: Console, shown: ScoreTable) -> None:
    """A table on the screen, and its notes."""
    table = Table(title=shown.title)
    for column in shown.columns:
        table.add_column(column, overflow="fold")
    for row in shown.rows:
        table.add_row(*row)
    console.print(table)
    for note in shown.notes:
        console.print(note, highlight=False)


def show_worst(console: Console, scores: Mapping[str, Any]) -> None:
    """The preserved concepts that suffered most, and what could not be scored."""
    worst = Table(
        "run", "preserved concept", "before → after", "change, 95 %", title="Preserved concepts, most damaged first"
    )
    for name, result in scores.items():
        for row in [r for r in result.get("concepts", []) if r["role"] == "kept"][:WORST]:
            spread = "–" if row["interval"] is None else "{:+.2f} … {:+.2f}".format(*row["interval"])
            worst.add_row(name, row["word"], f"{row['before']:.2f} → {row['after']:.2f}", spread)
        for gap in result.get("missing", []):
            console.print(f"{name}: {gap}", highlight=False)
    if worst.row_count:
        console.print(worst)


def log_scores(logger: Logger, scores: Mapping[str, Any], gallery: Gallery) -> None:
    """Scalars of each run to a logger, and images where it takes any, as TensorBoard does."""
    for name, result in scores.items():
        if name == ORIGINAL:
            continue
        figures = {f"{name}/{kind}/{k}": v for kind, values in result["after"].items() for k, v in scalars(values)}
        figures |= {f"{name}/{key}": value for key, value in scalars(result["quality"])}
        logger.log_metrics(figures, step=0)
        for row in result["concepts"]:
            pairs = gallery.pairs((ORIGINAL, name), row["word"])
            if pairs and not log_image(logger, f"{name}/{row['word']}", sheet(pairs)):
                break


def scalars(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The plain numbers among some results."""
    return [(key, value) for key, value in values.items() if isinstance(value, float)]


def sheet(pairs: Sequence[tuple[tuple[int, int], Path, Path]]) -> Image.Image:
    """Original above edited, a column per image."""
    rows = [read_images(files, "model.output") for files in list(zip(*pairs, strict=True))[1:]]
    whole: Image.Image = make_image_grid([image for row in rows for image in row], rows=2, cols=len(pairs))
    return whole
