"""Lists of names alone: what the defaults reach for one to forty targets, against the best that a search finds.

Run it as ``python scripts/lists.py``; ``--only "[one, five]"`` makes some lists only. Each list is an order of its own,
``fit --data.concepts LIST --tune N``: names to preserve, anchors and weights are the run's own choice, and the search
begins with them. CLIP judges in the search; the convolutional judge confirms, by other seeds and prompts, the defaults
beside what was found. A list that was interrupted goes on, and what is done is taken again; two of these commands may
work on different lists side by side. The table says how many minutes of one core each list took.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compared import chosen
from runs import RUNS, SCORES, command, processor_seconds, run
from written import insert, markdown

from mace_pl.commands.fit_order import study_of
from mace_pl.commands.tune import CONFIRMED, SEARCHED
from mace_pl.files.artifacts import write_json
from mace_pl.files.tables import read_yaml

JUDGE = "mace_pl.evaluation.convolutional.ConvolutionalJudge"
HEAD = [
    "list",
    "targets",
    "trials",
    "defaults",
    "found",
    "defaults, confirmed",
    "found, confirmed",
    "points more",
    "core min",
]
Row = Mapping[str, Any]


def searched(name: str, targets: Sequence[str], options: Sequence[str]) -> Row:
    """What ``fit --tune`` says of a list, which is fitted, searched and confirmed where it was not."""
    output, file = RUNS / f"list_{name}", SCORES / "lists" / f"{name}.json"
    before = read_yaml(file, "list") if file.is_file() else {"seconds": 0.0}
    if not output.exists():
        started = processor_seconds()
        try:
            command("fit", "--data.concepts", json.dumps(list(targets)), "--output_dir", str(output), *options)
        finally:
            before = {"seconds": before["seconds"] + processor_seconds() - started}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, before)
    found = json.loads((study_of(output) / "tuning.json").read_text(encoding="utf-8"))
    return {"list": name, "targets": len(targets), "seconds": before["seconds"], **found}


def line(row: Row) -> list[str]:
    """A line of the table: H, and how many points more the search reaches in the confirmation."""
    hs = [row["figures"][kind]["h"] for kind in (*SEARCHED, *CONFIRMED)]
    more = 100 * (hs[3] - hs[2])
    start = [row["list"], str(row["targets"]), str(sum(row["trials"].values()))]
    return [*start, *(f"{h:.3f}" for h in hs), f"{more:+.1f}", f"{row['seconds'] / 60:.0f}"]


def main(
    lists: Path = Path("configs/compare/lists.yaml"),
    only: list[str] | None = None,
    trials: int = 20,
    pretrained: str = "checkpoints/emoji",
    clip: str = "checkpoints/emoji/clip",
    judge: str = "checkpoints/emoji/judge/judge.safetensors",
    steps: int = 8,
    preset: str = "tiny",
    more: list[str] | None = None,
    document: Path | None = None,
) -> None:
    """Fit, search and confirm each list, and write the table.

    Args:
        lists: names of targets by list.
        only: names of lists, all when None.
        trials: of each search.
        pretrained: folder of the pipeline.
        clip: folder of the CLIP that judges in the search.
        judge: weights of the convolutional judge that confirms.
        steps: denoising steps of all images.
        preset: of the model.
        more: options of ``fit`` beside these.
        document: where the table goes between its marks ``<!-- lists -->``; it is printed in any case.
    """
    options = ["--model.pretrained", pretrained, "--preset", preset, "--data.image_steps", str(steps)]
    options += ["--classifier", clip, "--confirm_by", JUDGE, "--confirm_by.weights", judge, "--tune", str(trials)]
    options += ["--report_seeds", "0", "--save_pipeline", "false", *(more or [])]
    wanted = chosen(read_yaml(lists, "lists", texts=True), only, "only")
    rows = [searched(name, targets, options) for name, targets in wanted.items()]
    table = markdown(HEAD, [line(row) for row in rows])
    print(table, f"\nRuns in {RUNS}, pages of the searches in {RUNS}/list_*.study")
    if document is not None:
        insert(document, {"lists": table})


if __name__ == "__main__":
    run(main)
