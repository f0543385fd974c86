"""Attacks on the bundled model before and after hardening, each target alone.

Run it as ``python scripts/hardening.py``; ``--targets "{ship: house}"`` attacks some of them only (target: anchor),
``--judge judge.safetensors`` asks the convolutional judge beside the classifier, ``--trials`` and ``--attacks`` say how
often and how. Runs that exist are kept; delete a folder to make it again. Figures and a page of images for each target
are written to checkpoints/scores/hardening_<target>, a table of all to checkpoints/scores/hardening.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from runs import RUNS, SCORES, command, concepts_of, fit

from mace_pl.evaluation.attack_results import COLUMNS, result_rows
from mace_pl.files.artifacts import slug
from mace_pl.files.markdown import markdown_table

CONFIG = "configs/emoji/erase_ship.yaml"
TARGETS = {"ship": "house", "cat": "palm tree", "truck": "clock", "wizard": "robot"}
ATTACKS = ("free_tokens", "printable", "direction", "noise", "completion", "image")


def hardened(run: Path) -> Path:
    """Harden a run, unless it was done."""
    place = run.with_name(f"{run.name}_hardened")
    if not place.exists():
        command("harden", "--run", str(run), "--output_dir", str(place))
    return place


def judges(judge: str | None) -> list[Any]:
    """The classifier, and the convolutional judge where there is one."""
    name = "mace_pl.evaluation.convolutional.ConvolutionalJudge"
    return ["clip", *([] if judge is None else [{"class_path": name, "init_args": {"weights": judge}}])]


def attack(target: str, runs: list[Path], names: str, more: dict[str, Any]) -> dict[str, Any]:
    """Success of the attacks on several runs, side by side."""
    output = SCORES / f"hardening_{slug(target)}.json"
    known = [name for name in Path(names).read_text(encoding="utf-8").splitlines() if name]
    settings = {"model.edited": [str(run) for run in runs], "data.names": known, "data.targets": [target], **more}
    words = [word for name, value in settings.items() for word in (f"--{name}", json.dumps(value))]
    cpu = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--model.overwrite", "true"]
    command("attack", "--model.output", str(output), *words, *cpu)
    success: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))["success"]
    return success


def main(
    targets: dict[str, str] | None = None,
    pretrained: str = "checkpoints/emoji",
    names: str = "configs/emoji/names.txt",
    judge: str | None = None,
    attacks: list[str] | None = None,
    trials: int = 20,
    seeds: int = 5,
    strengths: dict[str, Any] | None = None,
) -> None:
    """Fit, harden and attack.

    Args:
        targets: anchors by target.
        pretrained: the model.
        names: what judges choose among: a text file with one on each line.
        judge: ``judge.safetensors`` of the convolutional judge.
        attacks: some of those of ``erase.py attack``.
        trials: of each attack.
        seeds: of each hidden prompt.
        strengths: how hard attacks try, as ``--model.strengths`` takes it.
    """
    found: dict[str, Any] = {}
    more: dict[str, Any] = {"model.pretrained": pretrained, "model.judge": judges(judge), "data.trials": trials}
    more |= {"data.attacks": attacks or list(ATTACKS), "data.seeds": seeds}
    more |= {f"model.strengths.{name}": value for name, value in (strengths or {}).items()}
    for target, anchor in (targets or TARGETS).items():
        concept = concepts_of(CONFIG)[0] | {"target": target, "anchor": anchor}
        run = fit(CONFIG, f"alone_{slug(target)}", [concept], "--model.pretrained", pretrained)
        found |= attack(target, [run, hardened(run)], names, more)
    table = markdown_table(COLUMNS, result_rows(found))
    (SCORES / "hardening.md").write_text(table + "\n", encoding="utf-8")
    print(table, f"Runs are in {RUNS}, pages in {SCORES}.", sep="\n\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
