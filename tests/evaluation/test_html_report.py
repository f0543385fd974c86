"""The report page: everything in one file, and a browser that opens it finds its sections and has no complaint."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from mace_pl.evaluation.ablation import read_ablation
from mace_pl.evaluation.html_report import html_page
from mace_pl.evaluation.report_images import ORIGINAL, Gallery, first_cells

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECTIONS = ["scores", "images", "worst", "concepts", "ablation", "settings"]
ABLATION = [
    {"label": "closed form <only>", "acc_e": 0.5, "acc_s": 1.0, "h": 0.6667},
    {"label": "all", "acc_e": 0.0, "acc_s": 0.5, "h": 0.6667},
]


def concept(word: str, role: str, before: float, after: float, seen: dict[str, float]) -> dict[str, Any]:
    row = {"word": word, "role": role, "nearest": word == "<boat>", "before": before, "after": after}
    row |= {"change": after - before, "interval": [after - before - 0.1, after - before + 0.1]}
    row |= {"probability": after, "clip_score": 20.0, "seen_as": seen, "undetected": 0.25 * (word == "<boat>")}
    return row | {"empty": 0.5 * (word == "ship")}


def content() -> dict[str, Any]:
    top1 = {"acc_e": 0.1, "acc_s": 0.8, "h": 0.85, "h_c": 0.8471, "intervals": {"acc_e": [0.05, 0.2]}}
    when = {"top1": top1, "probability": top1, "clip_score": {"erased": 20.0, "kept": 24.0, "h_a": 4.0}}
    when |= {"shares": {"target": 0.1, "anchor": None, "other": 0.4, "empty": 0.5}, "synonym_shares": {}}
    found = {
        "fails": ["50% of the images of what is erased are empty"],
        "before": when,
        "after": when,
        "concepts": [
            concept("<boat>", "kept", 1.0, 0.5, {"dog": 0.5}),
            concept("dog", "kept", 0.9, 0.9, {}),
            concept("ship", "erased", 1.0, 0.0, {"dog": 1.0}),
            concept("vessel", "synonym", 1.0, 0.0, {"dog": 1.0}),
        ],
        "missing": ["no intervals: they need more seeds"],
        "nearest": {"ship": {"embedding": ["<boat>"], "tokens": []}},
        "quality": {"fid": 1.5, "kid": None, "distance": 0.1, "missing": {"kid": "needs 50 images"}},
    }
    settings = {"pretrained": "toy", "names": ["ship", "dog"] * 40}
    reach = {"size": 1.5, "residual": 0.04, "moved": 0.5, "near": [{"name": "<boat>", "distance": 0.1, "moved": 0.25}]}
    both = {"ablation": ABLATION, "reach": {"run": {"ship": reach}}}
    return {"settings": settings, "scores": {ORIGINAL: {}, "run": found}} | both


@pytest.fixture
def page(tmp_path: Path) -> Path:
    gallery = Gallery(tmp_path / "pictures", first_cells(1, 4, 3))
    for model, colour in ((ORIGINAL, "red"), ("run", "blue")):
        for word in ("<boat>", "dog", "ship", "vessel"):
            for seed in range(4):
                gallery.save(model, word, (0, seed), Image.new("RGB", (64, 64), colour))
    path = tmp_path / "report.html"
    path.write_text(html_page(content(), gallery), encoding="utf-8")
    shutil.rmtree(gallery.folder)
    return path


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    void = frozenset({"meta", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in text and "<script" not in text
    parser = Balance()
    parser.feed(text)
    assert parser.open == [] and parser.ids == SECTIONS


def test_it_shows_pairs_worst_cases_and_gaps(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "&lt;boat&gt;" in text and "<boat>" not in text
    worst = text.split('id="worst"')[1].split("</section>")[0]
    assert "&lt;boat&gt;: " in worst and "seen as dog 50%, nothing to judge 25%" in worst and "dog: " not in worst
    assert worst.count("<figure>") == 3 and worst.count("<img") == 6
    assert "H_c ↑" in text and "<td>0.847</td>" in text  # of 0.9 and 0.8
    assert "0.050 … 0.200" in text and "needs 50 images" in text and "they need more seeds" in text


def test_an_ablation_is_a_table_and_a_curve(page: Path, tmp_path: Path) -> None:
    section = page.read_text(encoding="utf-8").split('id="ablation"')[1].split("</section>")[0]
    row = "<tr><td>1</td><td>closed form &lt;only&gt;</td><td>0.500</td><td>1.000</td><td>0.667</td></tr>"
    assert row in section and section.count("<tr>") == 3
    (data,) = re.findall(r'<img class="curve" src="data:image/svg\+xml;base64,([^"]*)"', section)
    drawing = base64.b64decode(data)
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert all(f"<!-- {name} -->".encode() in drawing for name in ("Acc_e ↓", "Acc_s ↑", "H ↑"))  # words, as outlines
    without = {key: found for key, found in content().items() if key != "ablation"}
    text = html_page(without, Gallery(tmp_path / "none", first_cells(1, 4, 3)))
    assert "Ablation" not in text and 'class="curve"' not in text


def test_an_ablation_is_read_from_rows_and_from_scores(tmp_path: Path) -> None:
    rows, scores = tmp_path / "rows.json", tmp_path / "scores.json"
    rows.write_text(json.dumps(ABLATION))
    scores.write_text(json.dumps(content()))
    run = {"label": "run", "acc_e": 0.1, "acc_s": 0.8, "h": 0.85}
    assert read_ablation([str(rows), str(scores)]) == [*ABLATION, run]
    assert read_ablation([]) == []


@pytest.mark.parametrize(
    "wrong",
    ["no JSON", "[]", '[{"label": "a"}]', '[{"label": "a", "acc_e": 1, "acc_s": 50, "h": 1}]', '{"scores": {}}'],
)
def test_an_ablation_that_says_too_little_is_refused(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(wrong)
    with pytest.raises(ValueError, match=r"model\.ablation: .*wrong\.json"):
        read_ablation([str(file)])
    with pytest.raises(ValueError, match=r"model\.ablation: .*nowhere\.json cannot be read"):
        read_ablation([str(tmp_path / "nowhere.json")])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_finds_the_sections_and_no_errors(page: Path, tmp_path: Path, width: int) -> None:
    # a frame as wide as the screen, as Chromium's own window has a smallest width; it tells what became of the page
    probe = """<script>window.onload = () => parent.postMessage(JSON.stringify({
        sections: [...document.querySelectorAll("section")].map(s => s.id),
        fits: document.documentElement.scrollWidth <= window.innerWidth,
        broken: [...document.images].filter(i => i.naturalWidth == 0).length,
        width: window.innerWidth}), "*")</script>"""
    probed, outer = tmp_path / "probed.html", tmp_path / "outer.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{probe}</body>"), encoding="utf-8")
    outer.write_text(
        '<!doctype html><html><head><link rel="icon" href="data:,"><script>'
        "window.addEventListener('message', e => { document.title = e.data })</script></head>"
        f'<body><iframe src="probed.html" width="{width}" height="900" style="border:0"></iframe></body></html>'
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(unescape(re.findall("<title>(.*?)</title>", done.stdout)[0]))
    assert found == {"sections": SECTIONS, "fits": True, "broken": 0, "width": width}
    assert "CONSOLE" not in done.stderr
