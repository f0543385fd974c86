"""The table (CSV, Markdown) and the page (HTML) of a comparison."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compared import Targets
from compared_images import Images
from jinja2 import Environment, FileSystemLoader
from written import markdown

from mace_pl.data.levels import LEVELS
from mace_pl.evaluation.html_report import as_data
from mace_pl.evaluation.judges import CLIP
from mace_pl.evaluation.report_images import ORIGINAL
from mace_pl.evaluation.shares import MARK
from mace_pl.files.artifacts import written_aside

Row = Mapping[str, Any]
STAYS = 0.5  # of the images of targets that the original shows: an edit that leaves more has not erased
WORDS = 12  # of a set on the page
SCORES = ["Acc_e ↓", "Acc_s ↑", "near ↑", "H_c ↑", "H_c, CLIP"]
HEAD = ["method", "settings", *SCORES, "target by level ↓", "preserved by level ↑", "CPU s", "MB", ""]
FIGURES = ("acc_e", "acc_s", "acc_n", "acc_g", "h_c")


def plain(value: float | None) -> str:
    """Two digits; a dash for nothing."""
    return "–" if value is None else f"{value:.2f}"


def score(found: Mapping[str, Any], name: str, when: str = "after") -> str:
    """A score with its interval, where it has one."""
    top = found[when]["top1"]
    if name not in top:
        return "–"
    limits = (top["intervals"] or {}).get(name)
    return plain(top[name]) + ("" if limits is None else f" [{max(limits[0], 0):.2f}, {limits[1]:.2f}]")


def by_level(found: Mapping[str, Any], role: str) -> str:
    """The shares of the levels in their order: of targets seen, or of preserved names (near and far) seen rightly."""
    levels = found.get("levels", {})
    values = []
    for level in (level for level in LEVELS if level in levels):
        own = levels[level]
        known = [own[role]] if role == "target" else [own[r] for r in ("near", "far") if own[r] is not None]
        known = [value for value in known if value is not None]
        values.append(plain(sum(known) / len(known) if known else None))
    return " / ".join(values) or "–"


def verdict(row: Row) -> str:
    """What a reader must know beside the scores: refused, failed, or the target is still there."""
    if "refused" in row:
        return f"{MARK} refused: {row['refused']}"
    found = next(iter(row["results"].values()))
    before, after = (found[when]["top1"]["acc_e"] for when in ("before", "after"))
    said = [f"{MARK} the target stays"] if after > STAYS * before else []
    return "; ".join(said + [f"{MARK} {failure}" for failure in found["fails"]])


def changed_settings(row: Row) -> str:
    """The settings of a row in words."""
    values = ", ".join(f"{key.removeprefix('method.')} {value}" for key, value in row["settings"].items())
    return f"{row['kind']}: {values}"


def line(row: Row) -> list[str]:
    """A row of the table of a set."""
    start = [row["method"], changed_settings(row)]
    if "refused" in row:
        return [*start, *[""] * (len(HEAD) - 3), verdict(row)]
    reporting = next(iter(row["results"].values()))
    clip = row["results"][CLIP]
    scores = [score(reporting, name) for name in ("acc_e", "acc_s", "acc_n", "h_c")]
    levels = [by_level(reporting, role) for role in ("target", "preserved")]
    cost = [f"{row['seconds']:.2f}", f"{row['peak_mb']:.0f}" if "peak_mb" in row else "–"]
    return [*start, *scores, score(clip, "h_c"), *levels, *cost, verdict(row)]


def mean_lines(rows: Sequence[Row], single: Sequence[str]) -> list[list[str]]:
    """The means over the sets with one target, by method and settings; refused cells are counted, not averaged."""
    lines = []
    for method, kind in dict.fromkeys((row["method"], row["kind"]) for row in rows if row["set"] in single):
        own = [r for r in rows if (r["method"], r["kind"]) == (method, kind) and r["set"] in single]
        there = [r for r in own if "results" in r]
        cells = [method, kind, f"{len(there)} of {len(own)}", str(sum(verdict(r) != "" for r in own))]
        for judge in (0, -1):
            tops = [list(r["results"].values())[judge]["after"]["top1"] for r in there]
            for name in ("acc_e", "acc_s", "h_c") if judge == 0 else ("h_c",):
                cells.append(plain(sum(top[name] for top in tops) / len(tops) if tops else None))
        cells.append(f"{max(r['seconds'] for r in there):.2f}" if there else "–")
        lines.append(cells)
    return lines


MEANS = ["method", "settings", "solved", "failed", "Acc_e ↓", "Acc_s ↑", "H_c ↑", "H_c, CLIP", "CPU s, at most"]


def flat(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line of the CSV for each cell and judge: scores with their limits, levels, costs."""
    lines = []
    for row in rows:
        start = {k: row[k] for k in ("set", "method", "kind")} | {"settings": changed_settings(row)}
        start |= {k: row.get(k, "") for k in ("seconds", "peak_mb", "took", "trials_took")} | {"note": verdict(row)}
        for judge, found in row.get("results", {"": None}).items():
            values: dict[str, Any] = {"judge": judge}
            if found is not None:
                values |= {"chose": judge == CLIP}
                top, before = (found[when]["top1"] for when in ("after", "before"))
                for name in (name for name in FIGURES if name in top):
                    values |= {name: top[name], f"{name} before": before[name]}
                    low_high = (top["intervals"] or {}).get(name)
                    values |= {} if low_high is None else {f"{name} low": low_high[0], f"{name} high": low_high[1]}
                values |= {f"share {kind}": share for kind, share in found["after"]["shares"].items()}
                for level, own in found.get("levels", {}).items():
                    values |= {f"{level} {role}": own[role] for role in ("target", "near", "far", "empty")}
            lines.append(start | values)
    return lines


def words_shown(rows: Sequence[Row], targets: Targets, images: Images) -> list[str]:
    """The worst ones first: targets that are seen or empty, then preserved names that lost most in any row."""
    erased = [concept["target"] for concept in targets.concepts]
    found = [next(iter(row["results"].values()))["concepts"] for row in rows if "results" in row]
    harm = dict.fromkeys(images.words.names, 0.0)
    for concept in (concept for own in found for concept in own if concept["word"] in harm):
        word = concept["word"]
        own = concept["after"] + concept["empty"] if word in erased else -concept["change"]
        harm[word] = max(harm[word], own)
    worst = sorted(harm, key=lambda word: -harm[word])  # of equal ones, those that come first
    targets_first = [word for word in worst if word in erased][: WORDS // 2]
    return [*targets_first, *(word for word in worst if word not in erased)][:WORDS]


def sheet(rows: Sequence[Row], targets: Targets, images: Images) -> list[tuple[str, list[list[str]]]]:
    """By word, the images of the original and of each row as addresses."""
    models = [ORIGINAL, *dict.fromkeys(row["model"] for row in rows if "results" in row)]
    found = []
    for word in words_shown(rows, targets, images):
        paths = [[images.gallery.path(model, word, cell) for cell in images.gallery.cells] for model in models]
        found.append((word, [[as_data(path) for path in own if path.is_file()] for own in paths]))
    return found


def write_page(
    output: Path,
    rows: Sequence[Row],
    sets: Mapping[str, Targets],
    images: Mapping[str, Images],
    given: Mapping[str, Any],
    name: str = "compare",
) -> None:
    """Write the table (CSV, Markdown) and the page (HTML).

    Args:
        output: folder.
        rows: of all cells.
        sets: by name.
        images: by vocabulary.
        given: settings of the comparison.
        name: of the files; ``compare`` has means over the sets with one target.
    """
    write_csv(output / f"{name}.csv", flat(rows))
    single = [own for own, one in sets.items() if len(one.concepts) == 1] if name == "compare" else []
    means = mean_lines(rows, single)
    told = {"reported by": next(iter(images.values())).labels[0], "chosen by": CLIP, "levels": " / ".join(LEVELS)}
    told |= given
    title = "Methods compared" if name == "compare" else name.capitalize()
    parts = [f"# {title}", "\n".join(f"- {key}: {value}" for key, value in told.items())]
    parts += [f"## Means of {len(single)} sets with one target", markdown(MEANS, means)] if single else []
    shown = []
    for label, one in sets.items():
        own = [row for row in rows if row["set"] == label]
        table = [line(row) for row in own]
        parts += [f"## {label}", markdown(HEAD, [[cell.replace("|", " ") for cell in cells] for cells in table])]
        columns = ["original", *(f"{row['method']}, {row['kind']}" for row in unlike(own))]
        shown.append((label, table, columns, sheet(own, one, images[one.vocabulary])))
    with written_aside(output / f"{name}.md") as aside:
        aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("compared.html.jinja").render(
        title=title, told=told, head=HEAD, shown=shown, means=means, means_head=MEANS, single=len(single)
    )
    with written_aside(output / f"{name}.html") as aside:
        aside.write_text(page, encoding="utf-8")
    shown_means = f"{markdown(MEANS, means)}\n" if single else ""
    print(f"{shown_means}Written to {output}: {name}.md, {name}.csv, {name}.html")


def write_csv(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A table with a column for every key."""
    columns = list(dict.fromkeys(key for entry in lines for key in entry))
    with written_aside(file) as aside, aside.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(lines)


def unlike(rows: Sequence[Row]) -> list[Row]:
    """Rows with images, the first of each model: the best trial may be the published settings."""
    found: dict[str, Row] = {}
    for row in rows:
        if "results" in row:
            found.setdefault(row["model"], row)
    return list(found.values())
