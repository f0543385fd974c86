"""The tables of score files in Markdown, and their places in a text such as docs/results.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mace_pl.files.artifacts import written_aside

Scores = Mapping[str, Any]  # of a score file: what each run reached, by its folder's name


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def changed(result: Mapping[str, Any], kind: str, name: str) -> str:
    """A score of a run, original → edited; empty where it has none."""
    before, after = (result[when][kind] for when in ("before", "after"))
    return f"{before[name]:.3f} → {after[name]:.3f}" if name in after else ""


def reached(result: Mapping[str, Any]) -> list[str]:
    """Acc_e, Acc_s and H_c of a run."""
    return [*(changed(result, "top1", name) for name in ("acc_e", "acc_s")), f"{result['after']['top1']['h_c']:.3f}"]


def objects(scores: Scores, single: Sequence[str]) -> str:
    """Runs over names with synonyms: a row per run, the mean H_o of those with one target below them."""
    rows = []
    for name, result in scores.items():
        cells = [changed(result, "top1", kind) for kind in ("acc_e", "acc_s", "acc_g")]
        rows.append([name.removeprefix("only_"), *cells, f"{result['after']['top1']['h']:.3f}"])
    mean = sum(scores[name]["after"]["top1"]["h"] for name in single) / len(single)
    rows.insert(len(single), [f"mean of {len(single)}", "", "", "", f"{mean:.3f}"])
    return markdown(["erased", "Acc_e", "Acc_s", "Acc_g", "H_o"], rows)


def crowds(scores: Scores, labels: Mapping[str, str], head: str) -> str:
    """Runs over names without synonyms, under their labels."""
    return markdown([head, "Acc_e", "Acc_s", "H_c"], [[label, *reached(scores[n])] for n, label in labels.items()])


def styles(result: Mapping[str, Any]) -> str:
    """The accuracy and the CLIP score of each style, the erased one first, and H_a."""
    erased = [row["word"] for row in result["concepts"] if row["role"] == "erased"]
    words = [*erased, *(word for word in result["after"]["top1"]["by_word"] if word not in erased)]
    rows = []
    for word in words:
        pairs = [
            [result[when][kind]["by_word"][word] for when in ("before", "after")] for kind in ("top1", "clip_score")
        ]
        cells = [f"{pairs[0][0]:.3f} → {pairs[0][1]:.3f}", f"{pairs[1][0]:.2f} → {pairs[1][1]:.2f}"]
        rows.append([f"{word} (erased)" if word in erased else word, *cells])
    all_of = [changed(result, "top1", "acc_e"), changed(result, "top1", "acc_s")]
    before, after = (result[when]["clip_score"]["h_a"] for when in ("before", "after"))
    rows.append(["erased; preserved; H_a", f"{all_of[0]}; {all_of[1]}", f"{before:.2f} → {after:.2f}"])
    return markdown(["style", "accuracy", "CLIP score"], rows)


def inserted(text: str, tables: Mapping[str, str]) -> str:
    """The text with each table between its marks, ``<!-- name -->`` and ``<!-- /name -->``, in place of the old one.

    Raises:
        ValueError: a table without its marks.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
        text, places = re.subn(pattern, lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.DOTALL)  # noqa: B023
        if places != 1:
            raise ValueError(f"The text needs one pair of marks <!-- {name} --> and <!-- /{name} -->; it has {places}.")
    return text


def insert(path: Path, tables: Mapping[str, str]) -> None:
    """Put tables into a file."""
    with written_aside(path) as aside:
        aside.write_text(inserted(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(f"{', '.join(tables)} written into {path}")
