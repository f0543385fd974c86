"""Seconds of the page of ``studio`` in a real browser: until its first images are there, and after a slider was moved.

Run it as ``python benchmarks/page.py --run checkpoints/erased/erase_ship``. It needs Gradio, Playwright and Chromium;
where Gradio has an environment of its own, ``--python`` names that one's interpreter. What is measured is what a user
waits for: from a key that moves the slider of the first concept to other images on the page.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import show_table
from jsonargparse import auto_cli

SCRIPT = Path(__file__).resolve().parents[1] / "erase.py"
KEYS = ("Home", "End", *("ArrowLeft",) * 8)  # 0, 1, and smaller and smaller ones
ADDRESS = "all => JSON.stringify(all.map(image => image.src))"
THUMBNAILS = "#edited .thumbnail-item img"


def first_page(browser: Any, url: str) -> tuple[Any, float]:
    """The page with its first images, and the seconds from opening it until they are there."""
    started = time.perf_counter()
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector(THUMBNAILS)
    return page, time.perf_counter() - started


def moved(page: Any, key: str) -> tuple[float, float]:
    """Seconds from a key on the first slider to other images, and those of solving and swapping among them."""
    before = page.eval_on_selector_all(THUMBNAILS, ADDRESS)
    page.focus("input[type=range][aria-label*='Strength of']")
    started = time.perf_counter()
    page.keyboard.press(key)
    changed = f"before => ({ADDRESS})([...document.querySelectorAll('{THUMBNAILS}')]) != before"
    page.wait_for_function(changed, arg=before)
    took = time.perf_counter() - started
    said = re.search(r"swapped in ([\d.]+) s", page.inner_text("#said"))
    return took, float(said[1]) if said else float("nan")


def main(run: str, steps: int = 12, moves: int = 6, python: str = sys.executable) -> None:
    """Serve a run, open its page, move a slider.

    Args:
        run: an output folder of ``fit``, or a library.
        steps: denoising steps of the four images.
        moves: how often the slider is moved.
        python: an interpreter that has Gradio.
    """
    from playwright.sync_api import sync_playwright

    command = [python, str(SCRIPT), "studio", "--run", run, "--port", "0", "--steps", str(steps)]
    started = time.perf_counter()
    served = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        lines = iter(served.stdout or ())
        url = next(found[1] for line in lines if (found := re.search(r"(http\S+?),?\s", line)))
        ready = time.perf_counter() - started
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page, opening = first_page(browser, url)
            took = [moved(page, key) for key in (KEYS * moves)[:moves]]
            browser.close()
    finally:
        served.send_signal(signal.SIGINT)
        served.wait()
    rows = [
        ["from the command to the page's address", f"{ready:.1f}", ""],
        ["from opening it to its first eight images", f"{opening:.1f}", ""],
        ["from moving a slider to four new images", *(f"{pick(s for s, _ in took):.2f}" for pick in (median, max))],
        ["solving and swapping among them", *(f"{pick(s for _, s in took):.2f}" for pick in (median, max))],
    ]
    show_table(f"four images of {steps} steps, {moves} moves", ["seconds", "median", "most"], rows)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
