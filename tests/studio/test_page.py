"""The page in a real browser: strengths are moved by keyboard, images follow, two users do not mix, nothing is asked
of another host."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from support.browsers import (
    PATIENCE,
    STEPS,
    TELEPHONE,
    Served,
    answers_of,
    chromium,
    equal,
    follow,
    has_whole_captions,
    images,
    lines_of,
    needs_browser,
    needs_gradio,
    opened,
    save,
    serving,
    sources,
    tab_to,
    typed,
)
from support.runs import CONCEPTS, SCRIPT, config, exit_message

from mace_pl.cli import erase_main
from mace_pl.evaluation.attacks.trial import Strengths
from mace_pl.library.change import Library
from mace_pl.models.sampling import generate
from mace_pl.run import Run
from mace_pl.studio.asked import Asked
from mace_pl.studio.attack import attack
from mace_pl.studio.session import Studio

SHIP = "input[type=number][aria-label*='Strength of ship']"


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    erase_main([*config(place, toy_pipeline, "run", CONCEPTS[:2]), "--save_pipeline", "false", "--report_seeds", "0"])
    return place / "run"


@pytest.fixture(scope="module")
def untouched(run: Path) -> Path:
    """A copy of the run before a test saves a state of it, in which a target may be left out."""
    return Path(shutil.copytree(run, run.with_name("untouched")))


@pytest.fixture(scope="module")
def served(run: Path, untouched: Path) -> Iterator[Served]:
    with serving(run) as found:
        yield found


@pytest.fixture(scope="module")
def studio(untouched: Path) -> Studio:
    """What the page is held against."""
    return Studio.open(str(untouched))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def alone(studio: Studio, prompt: str, strengths: dict[str, float]) -> np.ndarray:
    """What the edited model generates, without any page."""
    shown = studio.images(Asked(prompt, (0, 1, 2, 3), STEPS, 5.0, strengths), "nobody")
    return np.stack([np.asarray(image) for image in shown.edited])


@needs_gradio
@needs_browser
def test_a_strength_is_moved_and_saved_by_the_keyboard_alone(browser: Any, served: Served, studio: Studio) -> None:
    with opened(browser, served) as other, opened(browser, served) as page:
        assert equal(images(page, "edited"), alone(studio, "a photo of a ship", {"ship": 1.0, "painter": 1.0}))
        tab_to(page, "#prompt textarea, #prompt input")
        page.keyboard.press("Control+A")
        page.keyboard.type("a ship by a painter")
        follow(page, lambda: page.keyboard.press("Enter"))
        original, full = images(page, "original"), images(page, "edited")
        tab_to(page, "input[type=range][aria-label*='Strength of ship']")
        follow(page, lambda: page.keyboard.press("Home"))
        assert equal(images(page, "original"), original) and not equal(images(page, "edited"), full)
        assert equal(images(page, "edited"), alone(studio, "a ship by a painter", {"ship": 0.0, "painter": 1.0}))
        tab_to(page, "#concepts .concept:nth-of-type(2) input[type=checkbox]")
        follow(page, lambda: page.keyboard.press("Space"))
        assert equal(images(page, "edited"), alone(studio, "a ship by a painter", {"ship": 0.0}))
        tab_to(page, "#written button")
        page.keyboard.press("Enter")
        tab_to(page, "#reason textarea, #reason input")
        page.wait_for_timeout(1000)  # what has just been unfolded takes the focus when it is there
        page.keyboard.type("withdrawn", delay=50)
        tab_to(page, "#save")
        page.keyboard.press("Enter")
        page.wait_for_selector("#done code")
        state = page.locator("#done code").first.inner_text()
        saved = Run.load(served.run)
        assert saved.folder.name == state and saved.fused.weights == {"ship": 0.0} and saved.targets == ["ship"]
        assert Library.open(str(served.run)).history.events[-1].reason == "withdrawn"
        page.click("#facts button.label-wrap")
        page.wait_for_selector(f"#facts code:text('{state}')")
        said = page.inner_text("#facts")
        assert "Edited by: refinement and the closed-form fusion" in said
        assert "Last change: strengths, " in said and "withdrawn" in said
        save(other, SHIP, 0.5, "text=another browser has saved the state")
        page.reload()  # as whoever opens it now
        page.wait_for_selector("#edited img")
        assert equal(images(page, "edited"), alone(studio, "a photo of a ship", {"ship": 0.0}))
        assert page.input_value(SHIP) == "0"
        page.check("#concepts .concept:nth-of-type(2) input[type=checkbox]")
        save(page, SHIP, 1, f"#done >> text=Saved as state >> :not(:text('{state}'))")  # as it was
        assert Run.load(served.run).fused is None


@needs_gradio
@needs_browser
def test_two_browsers_at_once_do_not_mix(browser: Any, served: Served, studio: Studio) -> None:
    wanted = {"a photo of a ship": 0.0, "art by a ship": 0.5}
    expected = {prompt: alone(studio, prompt, {"ship": wanted[prompt], "painter": 1.0}) for prompt in wanted}
    with opened(browser, served) as one, opened(browser, served) as two:
        for page, (prompt, strength) in zip((one, two), wanted.items(), strict=True):
            page.fill("#prompt textarea, #prompt input", prompt)
            page.fill(SHIP, str(strength))
        for page in (one, two):
            page.click("#generate")
        for page, (prompt, images_alone) in zip((one, two), expected.items(), strict=True):
            ends = time.monotonic() + PATIENCE
            while not equal(images(page, "edited"), images_alone):
                assert time.monotonic() < ends, f"{prompt} is not what its browser has asked for"
                page.wait_for_timeout(200)


@needs_gradio
@needs_browser
def test_a_request_that_comes_late_does_not_replace_a_newer_one(browser: Any, served: Served, studio: Studio) -> None:
    held: list[Any] = []
    with opened(browser, served) as page:
        answers = answers_of(page)
        page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
        page.fill(SHIP, "0.5")
        while not held:
            page.wait_for_timeout(50)
        follow(page, lambda: page.fill(SHIP, "0"))
        newer = alone(studio, "a photo of a ship", {"ship": 0.0, "painter": 1.0})
        assert equal(images(page, "edited"), newer)
        assert not equal(newer, alone(studio, "a photo of a ship", {"ship": 0.5, "painter": 1.0}))
        while answers.running:
            page.wait_for_timeout(50)
        before = answers.ended
        held[0].continue_()
        while answers.ended == before:  # until it is answered
            page.wait_for_timeout(50)
        page.wait_for_timeout(500)
        assert equal(images(page, "edited"), newer)


@needs_gradio
@needs_browser
def test_what_is_cancelled_is_not_shown(browser: Any, served: Served) -> None:
    with opened(browser, served) as page:
        before, answers = sources(page, "edited"), answers_of(page)
        page.fill("#steps input[type=number]", "100")
        page.wait_for_selector("#generate")
        # in one go: on a busy machine the images are there before a second click of the driver's
        page.evaluate("['#generate', '#cancel'].forEach((name) => document.querySelector(name).click())")
        page.wait_for_selector("#said >> text=Cancelled.")
        while answers.running or not answers.ended:
            page.wait_for_timeout(50)
        page.wait_for_timeout(500)
        assert sources(page, "edited") == before


@needs_gradio
@needs_browser
def test_an_attack_shows_a_target_before_and_after(browser: Any, served: Served, studio: Studio) -> None:
    asked = Asked("", (0,), STEPS, 5.0, {"ship": 1.0, "painter": 1.0})
    expected = attack(studio, asked, "ship", "nobody", strengths=Strengths(token_steps=2))
    with opened(browser, served, **TELEPHONE) as page:
        page.click("#attack button.label-wrap")
        typed(page, "#tries input[type=number]", "2")
        page.click("#start")
        page.wait_for_function("document.querySelectorAll('#attacked .thumbnail-item img').length == 3")
        for seen, image in zip(images(page, "attacked"), vars(expected).values(), strict=True):
            assert equal(seen, np.asarray(image))
        page.wait_for_selector("#attacked >> text=with the tokens")
        assert has_whole_captions(page, "attacked")


@needs_gradio
@needs_browser
@pytest.mark.parametrize("given", ["7", ""])
def test_what_is_typed_and_is_no_strength_is_told_in_words(browser: Any, served: Served, given: str) -> None:
    with opened(browser, served) as page:
        page.fill(SHIP, given)
        page.wait_for_selector("text=Strength of ship: give a number from 0 to 1.")


@needs_gradio
@needs_browser
def test_the_grid_shows_targets_and_preserved_names(browser: Any, served: Served, studio: Studio) -> None:
    asked = Asked("", (3,), STEPS, 5.0, {"ship": 0.5, "painter": 1.0})
    _, expected = studio.grid(asked, ["house"], "nobody")
    pairs = [np.asarray(image) for pair in zip(expected.original, expected.edited, strict=True) for image in pair]
    with opened(browser, served) as page:
        page.fill("#seeds textarea, #seeds input", "3")
        page.fill(SHIP, "0.5")
        page.click("#grid button.label-wrap")
        typed(page, "#beside textarea, #beside input", "house")
        page.click("#make")
        page.wait_for_function("document.querySelectorAll('#named .thumbnail-item img').length == 6")
        assert equal(images(page, "named"), np.stack(pairs))
        columns = "grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length"
        assert page.eval_on_selector("#named .grid-container", columns) == 4  # two pairs, side by side
        assert "at ship 0.5, painter 1" in page.inner_text("#named")


@needs_gradio
@needs_browser
def test_an_export_generates_what_the_page_shows(browser: Any, served: Served) -> None:
    with opened(browser, served) as page:
        follow(page, lambda: page.fill(SHIP, "0.5"))
        shown = images(page, "edited")
        page.click("#written button.label-wrap")
        typed(page, "#name textarea, #name input", "tried")
        page.click("#export")
        place = Path(page.locator("#done code").first.inner_text())
        assert place == served.run.with_name("run-studio") / "tried" / "pipeline"
        for _ in range(2):
            page.click("#export")
            page.wait_for_selector(f"text=export: {place} exists. Give another name.")
            page.wait_for_timeout(1000)
        assert page.locator(".toast-body").count() == 1  # errors do not pile up
    pipeline = StableDiffusionPipeline.from_pretrained(place)
    made = generate(pipeline, ["a photo of a ship"] * 4, range(4), STEPS, 5.0)
    assert equal(np.stack([np.asarray(image) for image in made]), shown)


@needs_gradio
@needs_browser
def test_the_benchmark_times_a_moved_slider(browser: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent / "benchmarks"))
    benchmark = import_module("page")
    page, opening = benchmark.first_page(browser, served.url)
    took, solving = benchmark.moved(page, "Home")
    page.close()
    assert opening > 0 and 0 <= solving < took


@needs_gradio
@needs_browser
def test_it_fits_a_telephone_in_the_dark(browser: Any, served: Served) -> None:
    with opened(browser, served, **TELEPHONE) as page:
        for part in ("#grid", "#attack", "#facts", "#written"):
            page.click(f"{part} button.label-wrap")
        page.wait_for_selector("#export")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.wait_for_selector("#facts table")
        lines = lines_of(page, "#facts td")
        assert lines and max(lines) < 3, lines  # one line, and room above and below it
        look = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(title).color]".replace(
                "title", "document.querySelector('h1')"
            )
        )
        ground, letters = (sum(int(n) for n in re.findall(r"\d+", colour)[:3]) for colour in look)
        assert ground < 200 < 550 < letters, look


@needs_gradio
@needs_browser
def test_another_host_asks_for_the_token(browser: Any, run: Path) -> None:
    with serving(run, "--host", "0.0.0.0") as found, browser.new_context() as user:
        token = re.search(r"token (\S+)", found.said)[1]
        url, page = found.url.replace("0.0.0.0", "127.0.0.1"), user.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        assert page.request.get(f"{url}config").status == 401
        assert page.request.post(f"{url}gradio_api/queue/join", data={}).status == 401
        page.goto(url)
        page.wait_for_selector("input[type=password]")
        assert page.locator("#prompt").count() == 0
        for given, shown in (("wrong", "input[type=password]"), (token, "#prompt")):
            page.locator("input:not([type=password])").first.fill("anybody")
            page.fill("input[type=password]", given)
            page.get_by_role("button").first.click()
            page.wait_for_timeout(500)
            page.wait_for_selector(shown)


@pytest.mark.skipif(find_spec("gradio") is not None, reason="gradio is installed")
def test_without_gradio_the_message_names_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'pip install "mace-pl[studio]"' in exit_message(["studio", "--run", str(run)], capsys)
