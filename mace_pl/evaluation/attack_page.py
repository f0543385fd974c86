"""The page of an attack: figures, and the images that came back or did not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader

from mace_pl.evaluation.attack_results import COLUMNS
from mace_pl.evaluation.html_report import as_data
from mace_pl.evaluation.report_images import ORIGINAL, Gallery


def attack_page(
    rows: Sequence[Sequence[str]],
    settings: Mapping[str, Any],
    gallery: Gallery,
    edits: Sequence[str],
    targets: Sequence[str],
    kinds: Sequence[str],
    attacks: Sequence[str],
    trials: int,
) -> str:
    """The whole page, which needs no other file.

    Args:
        rows: cells of the table.
        settings: of the attack.
        gallery: images of each model; a cell is (kind, trial).
        edits: names of what was attacked.
        targets: names.
        kinds: all ways of asking.
        attacks: those of them that have images.
        trials: of each.
    """
    models = [ORIGINAL, *(f"{edit} {when}" for edit in edits for when in ("before", "after"))]
    shown = []
    for target in targets:
        for attack in attacks:
            cells = [(kinds.index(attack), trial) for trial in range(trials)]
            files = [[gallery.path(model, target, cell) for cell in cells] for model in models]
            images = [[as_data(file) if file.is_file() else None for file in own] for own in files]
            shown.append(
                {"target": target, "attack": attack.replace("_", " "), "rows": list(zip(models, images, strict=True))}
            )
    environment = Environment(loader=PackageLoader("mace_pl.evaluation", "."), autoescape=True)
    return environment.get_template("attack.html.jinja").render(
        title=f"Attacks on {', '.join(edits)}",
        head=COLUMNS,
        rows=rows,
        shown=shown,
        settings={k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in settings.items()},
    )
