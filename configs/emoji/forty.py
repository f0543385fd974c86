"""Erase 1 to 40 of the bundled model's 94 concepts: the number, the stages, and the weight of what is preserved.

Run it as ``python configs/emoji/forty.py``. Runs that exist are kept; delete a folder to make it again. Takes
about 40 minutes on two CPU cores. Written to checkpoints/scores: ``forty`` (the configuration's edit, 20 seeds),
``counts`` (its first 1, 5, 10, 20 and 40 concepts), ``ablation`` (its stages one after another) and ``tradeoff`` with a
plot (refinement alone and the whole method over the weight of the domain).
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
from runs import PROCESSES, SCORES, concepts_of, fit, fuse, score

CONFIG, JUDGE = "configs/emoji/erase_40.yaml", "configs/evaluate/emoji_forty.yaml"
COUNTS = (1, 5, 10, 20)
WEIGHTS = (0.1, 1.0, 3.0, 10.0)
VARIANTS = {"refined": "refinement alone", "fused": "all stages"}


def plot(weights: dict[str, tuple[str, float]]) -> None:
    """Acc_s over Acc_e, a line per method; ``weights``: method and weight by run."""
    scores = json.loads((SCORES / "tradeoff.json").read_text(encoding="utf-8"))["scores"]
    figure, axes = plt.subplots(figsize=(6, 4))
    for method, label in VARIANTS.items():
        found = [(scores[run]["after"]["top1"], weight) for run, (own, weight) in weights.items() if own == method]
        axes.plot([top["acc_e"] for top, _ in found], [top["acc_s"] for top, _ in found], marker="o", label=label)
        for top, weight in found:
            axes.annotate(f"{weight:g}", (top["acc_e"], top["acc_s"]), textcoords="offset points", xytext=(5, 5))
    axes.set(xlabel="Acc_e, lower is better", ylabel="Acc_s, higher is better", title="Weight of the domain")
    axes.legend()
    figure.tight_layout()
    figure.savefig(SCORES / "tradeoff.png", dpi=120)
    print(f"Written to {SCORES / 'tradeoff.png'}")


def main(seeds: int = 8, curve_seeds: int = 4) -> None:
    """All runs and tables."""
    concepts = concepts_of(CONFIG)
    # the forty first: the others take their pictures
    whole = fit(CONFIG, "erase_40")
    uniform = fit(CONFIG, "forty_uniform", None, "--model.importance_sampling", "false")
    with ThreadPoolExecutor(PROCESSES) as pool:
        fewer = list(pool.map(lambda count: fit(CONFIG, f"forty_first_{count}", concepts[:count]), COUNTS))
        plain = [
            fuse(uniform, "forty_refined", "--method", "refined"),
            fuse(uniform, "forty_added", "--method", "added"),
        ]
        variants: dict[str, tuple[str, float]] = {}
        runs: list[Path] = []
        for weight in WEIGHTS:
            both = ["--model.refine.domain", str(weight), "--model.fuse.domain", str(weight)]
            own = fit(CONFIG, f"forty_{weight}", None, *both)
            runs += [own, fuse(own, f"forty_refined_{weight}", "--method", "refined")]
            variants |= {runs[-2].name: ("fused", weight), runs[-1].name: ("refined", weight)}
    score(JUDGE, "forty", [whole])
    score(JUDGE, "counts", [*fewer, whole], "--data.seeds", str(seeds))
    score(JUDGE, "ablation", [*plain, uniform, whole], "--data.seeds", str(seeds))
    score(JUDGE, "tradeoff", runs, "--data.seeds", str(curve_seeds))
    plot(variants)


if __name__ == "__main__":
    main()
