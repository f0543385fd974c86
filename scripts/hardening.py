"""Attacks on edits of the bundled model: as MACE makes them, hardened, and beside them the strongest baselines.

Run it as ``python scripts/hardening.py``; ``--subjects "[ship]"``, ``--edits "[mace, hardened]"`` and ``--attacks
"[noise]"`` make some cells only, so that they may run one by one; ``--attacks "[]"`` fits and hardens, ``--scores
false`` leaves plain prompts and preserved names out. A cell is an attack on an edit of a subject: ship, cat, truck,
wizard and Velmora, each alone, ``five`` at once, and five ``others`` at once. Its trials are kept one by one in
``output``, images too, and taken again, so that the command may be cut off; two of them may work on different cells
side by side. Whatever is there goes into hardening.md, hardening.json and hardening.html in ``output``, also with
``--only_tables true``.

Edits: ``mace`` (``fit``), ``hardened`` (``harden`` on it), ``alone`` (``harden`` on the original), ``rece`` (a closed
form with adversaries as sums), and those of ``--variants "{rank16: {rank: 16}}"``: hardened with other settings.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from compare_methods import check_same
from compared import read_vocabularies
from hardening_cells import TRIED, Bench
from hardening_edits import HARDENED, Runs, Subject
from hardening_page import write_tables
from runs import RUNS, SCORES, run

from mace_pl.errors import UserError
from mace_pl.files.artifacts import slug
from mace_pl.files.tables import read_yaml
from mace_pl.models.pipeline import model_fingerprint

TARGETS = ("ship", "cat", "truck", "wizard", "Velmora")
OTHERS = ("helicopter", "rabbit", "bicycle", "astronaut", "Quistel")
STYLES = frozenset({"Velmora", "Quistel"})
SUBJECTS = {target: Subject(target, [target], STYLES) for target in TARGETS} | {
    "five": Subject("five", TARGETS, STYLES),
    "others": Subject("others", OTHERS, STYLES),
}


def some(known: list[str], wanted: list[str] | None, setting: str) -> list[str]:
    """What is wanted, all of it when None.

    Raises:
        UserError: something that is not known.
    """
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        raise UserError(f"{setting}={wanted}: {unknown[0]!r} is unknown. Choose from {', '.join(known)}.")
    return known if wanted is None else wanted


def main(
    subjects: list[str] | None = None,
    edits: list[str] | None = None,
    attacks: list[str] | None = None,
    trials: int = 20,
    seeds: int = 3,
    scores: bool = True,
    variants: dict[str, dict[str, Any]] | None = None,
    harden: dict[str, Any] | None = None,
    strengths: dict[str, Any] | None = None,
    pretrained: str = "checkpoints/emoji",
    judge: str = "checkpoints/emoji/judge/judge.safetensors",
    clip: str | None = None,
    steps: int = 12,
    guidance: float = 5.0,
    runs: Path = RUNS / "hardening",
    output: Path = SCORES / "hardening",
    vocabularies: Path = Path("configs/compare/sets.yaml"),
    fit: list[str] | None = None,
    device: str = "cpu",
    only_tables: bool = False,
) -> None:
    """Fit, harden, attack, and write tables and page.

    Args:
        subjects: what is erased: targets alone, or ``five`` or ``others`` at once; all when None.
        edits: some of mace, hardened, alone, rece and the variants; all when None.
        attacks: some of those of ``erase.py attack``, ``free_tokens_long`` (8 tokens, 200 steps), ``completion_early``
            (the original does a tenth or a fifth of the steps); all when None.
        trials: of each attack, and images of each target at each level of prompts.
        seeds: images of each preserved name and template.
        scores: whether plain prompts, sentences, descriptions and preserved names are measured.
        variants: settings of ``harden`` by the name of a further hardened edit.
        harden: settings of ``harden`` of ``hardened`` and ``alone``; its defaults when None.
        strengths: how hard attacks try, as ``--model.strengths`` of ``attack`` takes it.
        pretrained: the model.
        judge: weights of the convolutional judge.
        clip: folder of the CLIP that judges beside it; ``clip`` in ``pretrained`` when None.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        runs: folder of the runs; delete one to make it again.
        output: folder of what is measured; the settings above must stay the same for it.
        vocabularies: file with the names and templates of ``all`` and ``manners``.
        fit: further options of ``fit``.
        device: where everything is computed, as ``cuda``.
        only_tables: make nothing, write what is there.
    """
    known = read_vocabularies(read_yaml(vocabularies, "vocabularies"), vocabularies)
    hardenings = {HARDENED: harden or {}, **(variants or {})}
    made = Runs(runs, pretrained, hardenings, known["manners"].names, fit or [], device)
    words = {name: known[name] for name in ("all", "manners")}
    bench = Bench(
        pretrained, words, judge, clip or f"{pretrained}/clip", output, steps, guidance, strengths or {}, device
    )
    given = {"pretrained": pretrained, "model": model_fingerprint(bench.original), "steps": steps, "guidance": guidance}
    chosen = some(list(SUBJECTS), subjects, "subjects")
    tried = some(list(TRIED), attacks, "attacks")
    some(made.edits, edits, "edits")
    check_same(output / "settings.json", given)
    for name in [] if only_tables else chosen:
        for edit in some(made.edits, edits, "edits"):
            measure(bench, made, SUBJECTS[name], edit, tried, (trials, seeds if scores else 0))
    write_tables(output, bench.labels, [SUBJECTS[name] for name in SUBJECTS], list(TRIED), given, made)


def measure(
    bench: Bench, made: Runs, subject: Subject, edit: str, attacks: list[str], numbers: tuple[int, int]
) -> None:
    """All cells of an edit; what is there is taken.

    Args:
        bench: the original and judges.
        made: the runs.
        subject: what is erased.
        edit: which of its edits.
        attacks: names of the cells.
        numbers: trials, and images of each preserved name and template; 0 leaves the scores out.
    """
    run, place = made.make(subject, edit), bench.output / slug(subject.name) / slug(edit)
    trials, seeds = numbers
    bench.reach(subject, run, place)
    if seeds:
        report(f"{subject.name}, {edit}, prompts", lambda: bench.scores(subject, run, place, trials, seeds))
    for attack in attacks:
        for target in subject.targets:
            cell = place / slug(target) / attack
            tries = partial(bench.trials, subject, run, cell, attack, trials)
            report(f"{subject.name}, {edit}, {attack} on {target}", tries)


def report(what: str, make: Any) -> None:
    """Make a cell, and say how long it took."""
    started = time.perf_counter()
    found = make()
    print(f"{what}: {found['seconds']:.0f} s, now {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    run(main)
