"""The page of ``studio`` in a real browser: serving it, opening it, and what it shows."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.runs import SCRIPT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BESIDE = Path(sys.prefix) / "studio/bin/python"  # `make test` puts gradio there, which wants another pillow
PYTHON = sys.executable if find_spec("gradio") else str(BESIDE) if BESIDE.is_file() else None
STEPS = 2
TELEPHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "has_touch": True}
PATIENCE = 300  # seconds, on a machine that does much else

needs_gradio = pytest.mark.skipif(PYTHON is None, reason="needs gradio, in this environment or in .venv/studio")
needs_browser = pytest.mark.skipif(CHROMIUM is None or not find_spec("playwright"), reason="needs Chromium, playwright")


@dataclass
class Served:
    """A page that is served, of a run."""

    url: str
    run: Path
    said: str


@dataclass
class Answers:
    """The streams of answers of a page: one ends when all is answered that the page has asked for."""

    running: set[Any] = field(default_factory=set)
    ended: int = 0

    def begin(self, request: Any) -> None:
        if "/queue/data" in request.url:
            self.running.add(request)

    def end(self, request: Any) -> None:
        if request in self.running:
            self.running.remove(request)
            self.ended += 1


@contextmanager
def serving(run: Path, *options: str) -> Iterator[Served]:
    """The command in a process of its own, ended as by Ctrl+C."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {"GRADIO_TEMP_DIR": str(run.parent / "gradio"), "PYTHONPATH": str(SCRIPT.parent)}
    command = [str(PYTHON), str(SCRIPT), "studio", "--run", str(run), "--port", "0", "--steps", str(STEPS), *options]
    with (run.parent / "said.txt").open("w+") as told:
        process = subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.STDOUT, text=True)
        try:
            ends = time.monotonic() + PATIENCE
            while not (found := re.search(r"The page: (http\S+?),?\s", (run.parent / "said.txt").read_text())):
                assert process.poll() is None and time.monotonic() < ends, (run.parent / "said.txt").read_text()
                time.sleep(0.2)
            yield Served(found[1], run, (run.parent / "said.txt").read_text())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@contextmanager
def opened(browser: Any, served: Served, **settings: Any) -> Iterator[Any]:
    """A page of a user of its own, once its first images are there; it asks no other host, and has no complaint."""
    with browser.new_context(**settings) as user:
        page, asked, complaints = user.new_page(), [], []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("#edited img")
        yield page
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {served.url.split("/")[2]}
        assert complaints == []


def answers_of(page: Any) -> Answers:
    """Those that begin from now on."""
    found = Answers()
    page.on("request", found.begin)
    page.on("requestfinished", found.end)
    page.on("requestfailed", found.end)
    return found


def tab_to(page: Any, selector: str) -> None:
    """Go there by the keyboard alone."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"{selector} is not reached by the keyboard")


def sources(page: Any, name: str) -> list[str]:
    """The addresses of the images of a gallery, which hold hashes of their content."""
    found: list[str] = page.eval_on_selector_all(f"#{name} .thumbnail-item img", "all => all.map(i => i.src)")
    return found


def images(page: Any, name: str) -> np.ndarray:
    """The pixels that a gallery shows; a connection that the server has closed as idle is opened again."""
    answers = [page.request.get(source, max_retries=3).body() for source in sources(page, name)]
    return np.stack([np.asarray(Image.open(io.BytesIO(body)).convert("RGB")) for body in answers])


def follow(page: Any, change: Any) -> None:
    """Do something, and wait until the edited images are others."""
    before = sources(page, "edited")
    change()
    other = "b => JSON.stringify([...document.querySelectorAll('#edited .thumbnail-item img')].map(i => i.src)) != b"
    page.wait_for_function(other, arg=json.dumps(before, separators=(",", ":")))


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).max() <= 1)


def typed(page: Any, selector: str, text: str) -> None:
    """Type into a field of a part that was just opened, which is drawn once more, and leave the field."""
    drawn = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 200))))"
    page.wait_for_selector(selector)
    page.evaluate(drawn)
    page.fill(selector, text)
    page.press(selector, "Tab")
    page.evaluate(drawn)
    assert page.input_value(selector) == text


def save(page: Any, slider: str, strength: float, said: str) -> None:
    """Move a slider, save by the mouse, and wait for what is said then."""
    page.fill(slider, str(strength))
    if not page.locator("#save").is_visible():
        page.click("#written button.label-wrap")
    page.click("#save")
    page.wait_for_selector(said)


def has_whole_captions(page: Any, name: str) -> bool:
    """Whether no caption of a gallery is cut, by its own edge or by the gallery's."""
    whole: bool = page.evaluate(
        """name => { const edge = document.getElementById(name).getBoundingClientRect().right;
        return [...document.querySelectorAll(`#${name} .caption-label`)].every((one) =>
            one.scrollWidth <= one.clientWidth && one.getBoundingClientRect().right <= edge); }""",
        name,
    )
    return whole


def lines_of(page: Any, selector: str) -> list[float]:
    """The heights of elements, in lines of their text."""
    heights: list[float] = page.eval_on_selector_all(
        selector, "all => all.map((one) => one.clientHeight / parseFloat(getComputedStyle(one).lineHeight))"
    )
    return heights
