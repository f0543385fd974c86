"""The report of scores as one page that needs no other file: works on a telephone, in print and without a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from mace_pl.evaluation.ablation import cells, curve, head
from mace_pl.evaluation.reach_rows import COLUMNS, NOTE, reach_rows
from mace_pl.evaluation.report_images import ORIGINAL, Gallery
from mace_pl.evaluation.results import each_judge
from mace_pl.evaluation.score_tables import labelled, score_tables
from mace_pl.evaluation.shares import MARK

WORST = 6  # preserved concepts that are shown as the worst cases
ACCURACIES = {
    "acc_e": "Acc_e ↓",
    "acc_s": "Acc_s ↑",
    "acc_g": "Acc_g ↓",
    "acc_n": "nearest preserved ↑",
    "acc_f": "other preserved ↑",
    "h": "H ↑",
    "h_c": "H_c ↑",
}
SHARES_SHOWN = {"target": "target ↓", "anchor": "anchor ↑", "other": "other", "empty": "empty ↓"}
CLIP_SCORES = {"erased": "erased ↓", "kept": "preserved ↑", "h_a": "H_a ↑"}


def html_page(content: Mapping[str, Any], gallery: Gallery) -> str:
    """The whole page.

    Args:
        content: ``settings``, ``scores`` and perhaps ``ablation`` and ``reach`` as they are in the JSON file.
        gallery: the images.
    """
    scores, rows = content["scores"], content.get("ablation")
    runs = {name: entry for name, entry in scores.items() if name != ORIGINAL}
    chosen_by = content["settings"].get("chosen_by")
    main, *levels = score_tables(scores, chosen_by)

    def images(run: str, word: str) -> list[dict[str, Any]]:
        entry = gallery.pairs((ORIGINAL, run), word)
        return [
            {"original": as_data(a), "edited": as_data(b), "seed": gallery.first_seed + seed}
            for (_, seed), a, b in entry
        ]

    environment = Environment(loader=PackageLoader("mace_pl.evaluation", "."), autoescape=True)
    return environment.get_template("report.html.jinja").render(
        title=f"Erasure scores: {', '.join(runs) or ORIGINAL}",
        runs=runs,
        judged=[
            (name, "".join(judge), found) for name, run in runs.items() for judge, found in labelled(run, chosen_by)
        ],
        originals=[("".join(judge), found) for judge, found in labelled(scores[ORIGINAL], chosen_by)],
        several=any("judges" in result for result in scores.values()),
        failed=main.notes,
        mark=f"{MARK} ",
        levels=levels[0] if levels else None,
        words=[] if runs else original_rows(scores[ORIGINAL]),
        ablation={"head": head(), "rows": cells(rows), "curve": as_data(curve(rows), "svg+xml")} if rows else None,
        settings={
            k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in content["settings"].items()
        },
        gaps=gaps(runs),
        reach={name: reach_rows(found) for name, found in content.get("reach", {}).items()},
        reach_head=COLUMNS,
        reach_note=NOTE,
        images=images,
        worst=lambda entry: [r for r in entry["concepts"] if r["role"] == "kept" and r["change"] < 0][:WORST],
        seen_as=seen_as,
        ACCURACIES=ACCURACIES,
        SHARES=SHARES_SHOWN,
        CLIP_SCORES=CLIP_SCORES,
    )


def gaps(runs: Mapping[str, Any]) -> list[str]:
    """What could not be scored, and why."""
    said = [
        f"{name}{f', {judge}' if judge else ''}: {gap}"
        for name, result in runs.items()
        for judge, found in each_judge(result).items()
        for gap in found["missing"]
    ]
    return said + [
        f"{name}: {key} {gap}" for name, run in runs.items() for key, gap in run["quality"]["missing"].items()
    ]


def as_data(image: Path | bytes, kind: str = "png") -> str:
    """An image as an address that holds it."""
    content = image if isinstance(image, bytes) else image.read_bytes()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def seen_as(row: Mapping[str, Any]) -> str:
    """What a concept's images are taken for, the three most frequent; those with nothing to judge, and empty ones."""
    parts = [f"{name} {share:.0%}" for name, share in list(row["seen_as"].items())[:3]]
    parts += [f"nothing to judge {row['undetected']:.0%}"] if row["undetected"] else []
    parts += [f"empty {row['empty']:.0%}"] if row["empty"] else []
    return ", ".join(parts) or "nothing else"


def original_rows(original: Mapping[str, Any]) -> list[list[str]]:
    """A row per word of the original alone, the least accurate on top."""
    words = sorted(original["top1"]["by_word"].items(), key=lambda item: (item[1], item[0]))
    return [[word, f"{value:.2f}", f"{original['probability']['by_word'][word]:.3f}"] for word, value in words]
