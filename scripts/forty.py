"""Erase 1 to 40 of the bundled model's 94 concepts: the number, the stages, and the weight of what is preserved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from runs import concepts_of, fuse, some

CONFIG, JUDGE = "configs/emoji/erase_40.yaml", "configs/evaluate/emoji_forty.yaml"
COUNTS = (1, 5, 10, 20)
UNIFORM = ("--model.importance_sampling", "false")
ALONE = "refinement alone"
STAGES = {  # the paper's ablation: labels of runs
    "forty_refined": ALONE,
    "forty_added": "+ LoRAs, simply added",
    "forty_uniform": "+ closed-form fusion",
    "erase_40": "+ importance sampling",
}
NUMBERS = {f"forty_first_{count}": str(count) for count in COUNTS} | {"erase_40": "40"}
CURVE = {  # method and weight of the domain, by run
    "forty_fuse_20": ("all stages", 20),
    "forty_fuse_30": ("all stages", 30),
    "erase_40": ("all stages", 45),
    "forty_fuse_60": ("all stages", 60),
    "forty_fuse_100": ("all stages", 100),
    "forty_refine_1": (ALONE, 1),
    "forty_refine_2": (ALONE, 2),
    "forty_refine_2.5": (ALONE, 2.5),
    "forty_refine_3": (ALONE, 3),
    "forty_refine_5": (ALONE, 5),
}


def counted(count: int) -> Path:
    """Erase the first concepts."""
    return some(CONFIG, f"forty_first_{count}", concepts_of(CONFIG)[:count])


def variants(whole: Path, plain: Path) -> list[Path]:
    """All runs that need no training of their own, and the one without importance sampling."""
    runs = [plain, *(fuse(plain, f"forty_{method}", "--method", method) for method in ("refined", "added"))]
    for name, (_, weight) in CURVE.items():
        if name.startswith("forty_refine_"):
            runs.append(fuse(whole, name, "--method", "refined", "--refine", f"{{domain: {weight}}}"))
        elif name.startswith("forty_fuse_"):
            runs.append(fuse(whole, name, "--fuse", f"{{domain: {weight}}}"))
    return runs


def plot(scores: Mapping[str, Any], path: Path) -> None:
    """Acc_s over Acc_e, a line per method."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for label in dict.fromkeys(label for label, _ in CURVE.values()):
        points = [(scores[run]["after"]["top1"], weight) for run, (curve, weight) in CURVE.items() if curve == label]
        axes.plot([top["acc_e"] for top, _ in points], [top["acc_s"] for top, _ in points], marker="o", label=label)
        for top, weight in points:
            axes.annotate(str(weight), (top["acc_e"], top["acc_s"]), textcoords="offset points", xytext=(5, -12))
    axes.set(xlabel="Acc_e, lower is better", ylabel="Acc_s, higher is better", title="Weight of the domain")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"Written to {path}")
