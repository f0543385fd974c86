"""The report of scores as one page that needs no other file: works on a telephone, in print and without a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mace_pl.ablation import SERIES, cells, curve
from mace_pl.shown import ORIGINAL, Shown

WORST = 6  # kept concepts that are shown as the worst cases
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6572; --paper: #ffffff; --rule: #d9dee4; --band: #f4f6f8;
  --bad: #b42318; --good: #1a7f4b; --mark: #3b6fd4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --dim: #9aa5b1; --paper: #14171a; --rule: #323942;
  --band: #1d2126; --bad: #ff8a7a; --good: #5fd39a; --mark: #86aaf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; } h3 { font-size: 1rem; }
p.lead, figcaption { color: var(--dim); } p.lead { margin: 1.25rem 0 .25rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; } a { color: var(--mark); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { background: var(--band); } td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
small { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
.pairs { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; width: 6.5rem; } figure img { display: block; width: 100%; border-radius: 4px; }
figure img + img { margin-top: 3px; outline: 2px solid var(--mark); } figcaption { font-size: .8rem; }
@media (max-width: 30rem) { body { padding: .75rem; } figure { width: calc((100% - 1.5rem) / 3); } }
"""


def report(content: Mapping[str, Any], gallery: Shown) -> str:
    """The whole page.

    Args:
        content: ``settings``, ``scores`` and perhaps ``ablation`` as they are in the JSON file.
        gallery: the pictures.
    """
    scores, settings = content["scores"], content["settings"]
    runs = {name: found for name, found in scores.items() if name != ORIGINAL}
    sections = {"scores": ("Scores", score_section(scores, runs))}
    if runs:
        sections["pictures"] = ("Side by side", picture_section(runs, gallery))
        sections["worst"] = ("Worst cases", worst_section(runs, gallery))
        sections["concepts"] = ("Every concept", concept_section(runs))
    else:
        sections["concepts"] = ("Every concept", original_section(scores[ORIGINAL]))
    if content.get("ablation"):
        rows = content["ablation"]
        head = ["", "variant", *[name for name, _, _ in SERIES.values()]]
        sections["ablation"] = ("Ablation", table(head, cells(rows)) + curve(rows))
    sections["settings"] = ("Settings", settings_section(settings))
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items())
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{html}</section>' for key, (title, html) in sections.items())
    title = f"Erasure scores: {', '.join(runs) or ORIGINAL}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table whose cells are HTML, which scrolls on its own where the screen is narrow."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    said = f'<p class="lead">{escape(caption)}</p>' if caption else ""
    return f'{said}<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def value(found: Mapping[str, Any], key: str, digits: int = 3) -> str:
    """A score with its interval below; a dash where there is none."""
    if found.get(key) is None:
        return "–"
    interval = (found.get("intervals") or {}).get(key)
    spread = "" if interval is None else f"<br><small>{interval[0]:.{digits}f} … {interval[1]:.{digits}f}</small>"
    return f"{found[key]:.{digits}f}{spread}"


def score_section(scores: Mapping[str, Any], runs: Mapping[str, Any]) -> str:
    """Accuracies, probabilities, CLIP score and quality; original and edited beside each other."""
    if not runs:
        found = scores[ORIGINAL]
        rows = [[kind, value(found[kind], "acc_s")] for kind in ("top1", "probability")]
        return table(["kind", "mean over all names"], rows)
    keys = {"acc_e": "Acc_e ↓", "acc_s": "Acc_s ↑", "acc_g": "Acc_g ↓", "acc_n": "nearest kept ↑"}
    keys |= {"h": "H ↑", "h_c": "H_c ↑"}
    html = ""
    for kind, said in (("top1", "Top-1 accuracy"), ("probability", "Mean probability of the class")):
        rows = [
            [escape(name), when, *[value(found[when][kind], key) for key in keys]]
            for name, found in runs.items()
            for when in ("before", "after")
        ]
        html += table(["run", "", *keys.values()], rows, f"{said}, with 95 % intervals over seeds where known")
    clip = {"erased": "erased ↓", "kept": "kept ↑", "h_a": "H_a ↑"}
    rows = [
        [escape(name), when, *[value(found[when]["clip_score"], key, 2) for key in clip]]
        for name, found in runs.items()
        for when in ("before", "after")
    ]
    html += table(["run", "", *clip.values()], rows, "CLIP score of pictures and their prompts")
    rows = [
        [escape(name), *[value(found["quality"], key, 4) for key in ("fid", "kid", "distance")]]
        for name, found in runs.items()
    ]
    html += table(["run", "FID ↓", "KID ↓", "distance ↓"], rows, "Kept names, edited against the reference")
    return html + gaps(runs)


def gaps(runs: Mapping[str, Any]) -> str:
    """What could not be scored, and why."""
    said = [f"{name}: {gap}" for name, found in runs.items() for gap in found["missing"]]
    for name, found in runs.items():
        said += [f"{name}: {key} {gap}" for key, gap in found["quality"]["missing"].items()]
    return "<ul>" + "".join(f"<li>{escape(gap)}</li>" for gap in said) + "</ul>" if said else ""


def picture(path: Path, alt: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def pairs(gallery: Shown, run: str, word: str, count: int | None = None) -> str:
    """Original above edited, a column per seed."""
    figures = [
        f"<figure>{picture(a, f'{word}, original')}{picture(b, f'{word}, edited')}"
        f"<figcaption>{escape(word)}, seed {gallery.first_seed + cell[1]}</figcaption></figure>"
        for cell, a, b in gallery.pairs((ORIGINAL, run), word)[:count]
    ]
    return "".join(figures)


def picture_section(runs: Mapping[str, Any], gallery: Shown) -> str:
    """What is erased with all its pictures, then one of each kept name."""
    html = '<p class="lead">Above the original, below the edited model; the same prompt and seed.</p>'
    for run, found in runs.items():
        words = {role: [r["word"] for r in found["concepts"] if r["role"] == role] for role in ("erased", "synonym")}
        gone = "".join(pairs(gallery, run, word) for word in words["erased"])
        gone += "".join(pairs(gallery, run, word, 1) for word in words["synonym"])
        kept = "".join(pairs(gallery, run, r["word"], 1) for r in found["concepts"] if r["role"] == "kept")
        html += f'<h3>{escape(run)}: erased, and its synonyms</h3><div class="pairs">{gone}</div>'
        html += f'<h3>{escape(run)}: kept</h3><div class="pairs">{kept}</div>'
    return html


def worst_section(runs: Mapping[str, Any], gallery: Shown) -> str:
    """The kept concepts that lost most."""
    html = ""
    for run, found in runs.items():
        kept = [row for row in found["concepts"] if row["role"] == "kept" and row["change"] < 0][:WORST]
        html += f"<h3>{escape(run)}</h3>"
        for row in kept:
            html += f"<p>{escape(row['word'])}: {change(row)}, seen as {escape(seen(row))}</p>"
            html += f'<div class="pairs">{pairs(gallery, run, row["word"])}</div>'
        if not kept:
            html += "<p>No kept concept lost accuracy.</p>"
    return html


def change(row: Mapping[str, Any]) -> str:
    """Before → after of a concept, coloured where it moved the wrong way or the right one."""
    moved = row["change"] if row["role"] == "kept" else -row["change"]
    colour = "bad" if moved < 0 else "good" if moved > 0 else "same"
    return f'<span class="{colour}">{row["before"]:.2f} → {row["after"]:.2f}</span>'


def seen(row: Mapping[str, Any]) -> str:
    """What a concept's pictures are taken for, the three most frequent; those with nothing to judge."""
    found = [f"{name} {share:.0%}" for name, share in list(row["seen_as"].items())[:3]]
    found += [f"nothing to judge {row['blank']:.0%}"] if row["blank"] else []
    return ", ".join(found) or "nothing else"


def concept_section(runs: Mapping[str, Any]) -> str:
    """A row per concept: kept ones first, the most damaged on top."""
    html = ""
    for run, found in runs.items():
        rows = []
        for row in found["concepts"]:
            spread = "–" if row["interval"] is None else "{:+.2f} … {:+.2f}".format(*row["interval"])
            role = f"{row['role']}, next to a target" if row["nearest"] else row["role"]
            figures = [f"{row['probability']:.3f}", f"{row['clip_score']:.2f}"]
            rows.append([escape(row["word"]), role, change(row), spread, *figures, escape(seen(row))])
        head = ["concept", "role", "top-1", "change, 95 %", "probability", "CLIP score", "seen as"]
        html += table(head, rows, run)
        near = [
            [escape(target), sort, escape(", ".join(names) or "none")]
            for target, sorts in found["nearest"].items()
            for sort, names in sorts.items()
        ]
        html += table(["target", "nearest by", "kept names"], near)
    return html


def original_section(found: Mapping[str, Any]) -> str:
    """A row per word of the original alone, the least accurate on top."""
    words = sorted(found["top1"]["by_word"].items(), key=lambda item: (item[1], item[0]))
    rows = [[escape(w), f"{v:.2f}", f"{found['probability']['by_word'][w]:.3f}"] for w, v in words]
    return table(["concept", "top-1", "probability"], rows)


def settings_section(settings: Mapping[str, Any]) -> str:
    """What is needed to repeat the scores."""
    rows = []
    for key, found in settings.items():
        shown = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        rows.append(f'<tr><th>{escape(key)}</th><td class="wrap">{escape(shown)}</td></tr>')
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'
