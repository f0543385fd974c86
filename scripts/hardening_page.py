"""Tables (Markdown, JSON) and the page (HTML) of ``hardening.py``, of whatever is in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hardening_edits import CLOSED, MACE, Runs, Subject
from jinja2 import Environment, FileSystemLoader
from torchmetrics.functional import spearman_corrcoef
from written import markdown

from mace_pl.evaluation.attack_results import interval
from mace_pl.evaluation.html_report import as_data
from mace_pl.evaluation.reach_rows import FILE as REACH
from mace_pl.files.artifacts import slug, write_json, written_aside
from mace_pl.files.tables import read_yaml

Cell = Mapping[str, Any]
CLOSED_FORMS = (MACE, CLOSED)  # edits of keys and values alone
FIGURES = ("size", "residual", "moved")  # of the best embedding, and of the target
FEWEST = 8  # edits and targets for a correlation
LEVELS = ("plain", "sentences", "descriptions")
CORRELATED = ["attack", "edits", "edits and targets", *FIGURES]
SHOWN = 20  # images of a cell on the page


def rate(successes: int, n: int) -> dict[str, Any]:
    """A rate with its interval of 95 %."""
    return {"rate": successes / n, "n": n, "interval": interval(successes, n)}


def shown(found: Mapping[str, Any] | None) -> str:
    """A rate in words."""
    if found is None:
        return "–"
    low, high = found["interval"]
    extra = f", {found['steps']} steps" if found.get("steps") is not None else ""
    return f"{found['rate']:.2f} [{low:.2f}, {high:.2f}] of {found['n']}{extra}"


def read_cell(place: Path, labels: Sequence[str]) -> dict[str, Any]:
    """What the trials of a cell found, by judge; nothing where there are none."""
    files = sorted(place.glob("*.json"), key=lambda file: int(file.stem)) if place.is_dir() else []
    trials = [read_yaml(file, "output") for file in files]
    found: dict[str, Any] = {}
    for label in labels if trials else ():
        found[label] = rate(sum(any(one[label]) for one in trials), len(trials))
        if "at" in trials[0]:  # how many steps until the target is back, in the middle trial
            first = [one["at"][one[label].index(True)] for one in trials if any(one[label])]
            found[label]["steps"] = median(first) if len(first) > len(trials) / 2 else None
    if trials:
        found["seconds"] = sum(one["seconds"] for one in trials)
    return found


def read_row(
    folder: Path, subject: Subject, edit: str, labels: Sequence[str], attacks: Sequence[str], runs: Runs
) -> Any:
    """All that is known of an edit of a subject; None where that is nothing."""
    place = folder / slug(subject.name) / slug(edit)
    row: dict[str, Any] = {"subject": subject.name, "edit": edit, "seconds": runs.seconds(subject.name, edit)}
    file = place / "scores.json"
    scores = read_yaml(file, "output") if file.is_file() else None
    reach = read_yaml(place / REACH, "output")["targets"] if (place / REACH).is_file() else {}
    row |= {"targets": {}, "reach": reach}
    for target in subject.targets:
        own = {attack: read_cell(place / slug(target) / attack, labels) for attack in attacks}
        own = {attack: cell for attack, cell in own.items() if cell}
        for level, found in (scores["targets"][target] if scores else {}).items():
            own[level] = {label: rate(found[label], found["images"]) for label in labels}
        row["targets"][target] = own
    if scores:
        row["preserved"] = {
            kind: {when: {label: rate(own[when][label], own[when]["images"]) for label in labels}
                   for when in ("before", "after")} | {"distance": own["distance"]}
            for kind, own in scores["preserved"].items()
        }  # fmt: skip
    return row if scores or any(row["targets"].values()) else None


def edits_in(folder: Path, subject: Subject, runs: Runs) -> list[str]:
    """The edits of a subject that something is known of, those that the script can make first."""
    known = {slug(edit): edit for edit in runs.edits}
    place = folder / slug(subject.name)
    there = [own.name for own in sorted(place.iterdir()) if own.is_dir()] if place.is_dir() else []
    return [known[name] for name in known if name in there] + [name for name in there if name not in known]


def lines_of(rows: Sequence[Mapping[str, Any]], label: str, kinds: Sequence[str]) -> list[list[str]]:
    """A line for each target of each edit, by one judge."""
    moved = {(row["subject"], kind): own["distance"] for row in rows if row["edit"] == MACE
             for kind, own in row.get("preserved", {}).items()}  # fmt: skip
    lines = []
    for row in rows:
        kept = []
        for kind in ("all", "manners"):
            own = row.get("preserved", {}).get(kind)
            base = moved.get((row["subject"], kind))
            far = (
                "" if own is None else f"{own['distance']:.3f}" + (f" (×{own['distance'] / base:.2f})" if base else "")
            )
            right = [f"{own[when][label]['rate']:.3f}" for when in ("before", "after")] if own else []
            kept += [" → ".join(right), far]
        for target, cells in row["targets"].items():
            found = [shown(cells[kind][label]) if kind in cells else "–" for kind in kinds]
            own = row["reach"].get(target)
            best = "–" if own is None else f"{own['size']:.2f}, {own['residual']:.2f}, {own['moved']:.2f}"
            lines.append([row["subject"], target, row["edit"], *found, best, *kept, f"{row['seconds']:.0f}"])
    return lines


def rank_correlations(rows: Sequence[Mapping[str, Any]], label: str, attacks: Sequence[str]) -> list[list[str]]:
    """Spearman's, of the figures without an image with the attacks that succeed by a judge, over edits and targets.

    Hardened edits and the others apart too: a hardening changes figures and successes together.
    """
    groups = {"all": lambda edit: True, "not hardened": lambda edit: edit in CLOSED_FORMS}
    groups["hardened"] = lambda edit: edit not in CLOSED_FORMS
    lines = []
    for attack in attacks:
        for group, of in groups.items():
            pairs = [
                (*(row["reach"][target][name] for name in FIGURES), cells[attack][label]["rate"])
                for row in rows
                for target, cells in row["targets"].items()
                if of(row["edit"]) and attack in cells and target in row["reach"]
            ]
            values = torch.tensor(pairs, dtype=torch.float64)
            if len(pairs) >= FEWEST and len(set(values[:, -1].tolist())) > 1:
                found = [f"{float(spearman_corrcoef(own, values[:, -1])):+.2f}" for own in values.T[:-1]]
                lines.append([attack.replace("_", " "), group, str(len(pairs)), *found])
    return lines


def head_of(kinds: Sequence[str]) -> list[str]:
    """The columns."""
    names = ["best embedding: size, residual; moved", "names right", "distance", "manners right", "distance"]
    return ["erased", "target", "edit", *(kind.replace("_", " ") for kind in kinds), *names, "seconds"]


def sheets(folder: Path, rows: Sequence[Mapping[str, Any]], label: str, attacks: Sequence[str]) -> list[Any]:
    """By subject, target and attack, the images of each edit, and whether the judge sees the target in each."""
    found = []
    for name, target in dict.fromkeys((row["subject"], t) for row in rows for t in row["targets"]):
        for attack in attacks:
            own = []
            for row in (row for row in rows if row["subject"] == name):
                place = folder / slug(name) / slug(row["edit"]) / slug(target) / attack
                files = sorted(place.glob("*.json"), key=lambda file: int(file.stem)) if place.is_dir() else []
                images = [(as_data(file.with_suffix(".png")), any(read_yaml(file, "output")[label])) for file in files]
                own += [(row["edit"], images[:SHOWN])] if images else []
            found += [(f"{name}, {target}: {attack.replace('_', ' ')}", own)] if own else []
    return found


def write_tables(
    folder: Path,
    labels: Sequence[str],
    subjects: Sequence[Subject],
    attacks: Sequence[str],
    given: Mapping[str, Any],
    runs: Runs,
) -> None:
    """Write hardening.md, hardening.json and hardening.html, a table for each judge.

    Args:
        folder: of all measures.
        labels: of the judges; the first one reports.
        subjects: all that may be there.
        attacks: likewise.
        given: settings.
        runs: what took how long.
    """
    rows = [
        read_row(folder, one, edit, labels, attacks, runs) for one in subjects for edit in edits_in(folder, one, runs)
    ]
    rows = [row for row in rows if row is not None]
    there = {kind for row in rows for own in row["targets"].values() for kind in own}
    kinds = [kind for kind in (*LEVELS, *attacks) if kind in there]
    head, tables = head_of(kinds), [(label, lines_of(rows, label, kinds)) for label in labels]
    text = [f"By {label}:\n\n{markdown(head, lines)}" for label, lines in tables]
    relations = [(label, rank_correlations(rows, label, attacks)) for label in labels]
    text += [f"Rank correlations by {label}:\n\n{markdown(CORRELATED, lines)}" for label, lines in relations if lines]
    with written_aside(folder / "hardening.md") as aside:
        aside.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    write_json(folder / "hardening.json", {"settings": dict(given), "rows": rows})
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("hardening.html.jinja").render(
        head=head, tables=tables, sheets=sheets(folder, rows, labels[0], attacks), given=given, judge=labels[0]
    )
    with written_aside(folder / "hardening.html") as aside:
        aside.write_text(page, encoding="utf-8")
    print(text[0], f"Written to {folder}: hardening.md, hardening.json, hardening.html", sep="\n\n")
