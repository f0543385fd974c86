"""Erase 1 to 40 of the bundled model's 94 concepts: the number, the stages, and the weight of what is preserved.

Run it as ``python configs/emoji/forty.py``. Runs that exist are kept; delete a folder to make it again. Takes about
half an hour on two CPU cores. Written to checkpoints/scores: ``emoji_forty`` (the configuration's edit, 20 seeds),
``counts`` (its first 1, 5, 10, 20 and 40 concepts; the domain's weight grows with their number), ``ablation`` (its
stages one after another) and ``tradeoff`` with a plot (refinement alone and all stages over the domain's weight).
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from runs import PROCESSES, SCORES, concepts_of, fit, fuse, score

CONFIG, JUDGE = "configs/emoji/erase_40.yaml", "configs/evaluate/emoji_forty.yaml"
COUNTS = (1, 5, 10, 20)
CURVE = {"all stages": ("fuse", (10, 20, 50)), "refinement alone": ("refine", (1, 2, 3, 10))}
SEEDS = 4


def counted(count: int) -> Path:
    """Erase the first concepts; the domain's weights are those of the configuration per target."""
    concepts = concepts_of(CONFIG)
    model = yaml.safe_load(Path(CONFIG).read_text(encoding="utf-8"))["model"]
    share = [f"--model.{stage}.domain={model[stage]['domain'] * count / len(concepts)}" for stage in ("refine", "fuse")]
    return fit(CONFIG, f"forty_first_{count}", concepts[:count], *share)


def weighed(run: Path) -> dict[Path, tuple[str, int]]:
    """The run with other weights of the domain, in its fusion or in its refinement without LoRAs; label and weight."""
    alone = {"fuse": [], "refine": ["--method", "refined"]}
    return {
        fuse(run, f"forty_{stage}_{weight}", f"--{stage}", f"{{domain: {weight}}}", *alone[stage]): (label, weight)
        for label, (stage, weights) in CURVE.items()
        for weight in weights
    }


def plot(weights: dict[Path, tuple[str, int]]) -> None:
    """Acc_s over Acc_e, a line per method."""
    scores = json.loads((SCORES / "tradeoff.json").read_text(encoding="utf-8"))["scores"]
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for label in CURVE:
        found = [(scores[run.name]["after"]["top1"], weight) for run, (own, weight) in weights.items() if own == label]
        axes.plot([top["acc_e"] for top, _ in found], [top["acc_s"] for top, _ in found], marker="o", label=label)
        for top, weight in found:
            axes.annotate(str(weight), (top["acc_e"], top["acc_s"]), textcoords="offset points", xytext=(5, -12))
    axes.set(xlabel="Acc_e, lower is better", ylabel="Acc_s, higher is better", title="Weight of the domain")
    axes.legend()
    figure.tight_layout()
    figure.savefig(SCORES / "tradeoff.png", dpi=120)
    print(f"Written to {SCORES / 'tradeoff.png'}")


def main() -> None:
    """All runs and tables."""
    whole = fit(CONFIG, "erase_40")  # before the others, which take its pictures
    with ThreadPoolExecutor(PROCESSES) as pool:
        plain = pool.submit(fit, CONFIG, "forty_uniform", None, "--model.importance_sampling", "false")
        counts = [*pool.map(counted, COUNTS), whole]
    uniform = plain.result()
    stages = [fuse(uniform, f"forty_{method}", "--method", method) for method in ("refined", "added")]
    curve = weighed(whole)
    score(JUDGE, "emoji_forty", [whole])
    few = ["--data.seeds", str(SEEDS)]
    score(JUDGE, "ablation", [*stages, uniform, whole], *few)
    score(JUDGE, "counts", counts, *few)
    score(JUDGE, "tradeoff", list(curve), *few)
    plot(curve)


if __name__ == "__main__":
    main()
