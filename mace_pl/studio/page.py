"""The page: what is on it, and what each part does. All that a user sets comes from the user's own browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from mace_pl.errors import UserError
from mace_pl.evaluation.attacks.trial import Strengths
from mace_pl.studio.asked import MOST_GUIDANCE, MOST_IMAGES, MOST_STEPS, Asked
from mace_pl.studio.attack import MOST_TOKEN_STEPS, attack
from mace_pl.studio.facts import facts_of, preserved_names
from mace_pl.studio.image_files import ImageFiles
from mace_pl.studio.session import FORMATS, Shown, Studio
from mace_pl.studio.strength import SAID, strength_slider
from mace_pl.studio.turns import Cancelled

QUIET: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "minimal"}
INTRODUCTION = (
    "Move a strength: 1 erases the concept, 0 preserves it. A concept without its tick is left out. The prompt says "
    "what is generated: name in it what you move."
)
#: what is asked anew takes away what was said of what was asked before
CLEARED = "(...given) => { document.querySelectorAll('.toast-close').forEach((one) => one.click()); return %s; }"
#: what a browser asks for is numbered in it, in a last input: it need not reach us in the order in which it was asked
COUNTED = CLEARED % "[...given.slice(0, -1), (window.asked = (window.asked || 0) + 1)]"
ATTACK = (
    "Does the target come back? Free tokens are put before its plain prompt and optimised against the edit as it is "
    "set, for so many steps; the more of them, the harder the attack."
)
OUTDATED = "**Another command has changed the library. Start `studio` again to see its state.**"
LAST: dict[str, Any] = {"trigger_mode": "multiple", "js": COUNTED}  # what is asked anew ends what was asked before


def page_of(studio: Studio, files: ImageFiles, steps: int, guidance: float) -> gr.Blocks:
    """The whole page.

    Args:
        studio: the run that it shows.
        files: where its images lie.
        steps: denoising steps at first.
        guidance: classifier-free guidance scale at first.
    """
    title = f"Studio · {studio.run.home.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {title}\n{INTRODUCTION}")
        notice = gr.Markdown("", elem_id="notice")
        number, seen = gr.Number(0, visible=False), gr.Textbox(studio.state, visible=False)
        with gr.Row():
            prompt = gr.Textbox(_first_prompt(studio), label="Prompt", elem_id="prompt", scale=3)
            seeds = gr.Textbox("0, 1, 2, 3", label=f"Seeds, at most {MOST_IMAGES}", elem_id="seeds", scale=1)
        with gr.Row():
            n_steps = gr.Slider(1, MOST_STEPS, steps, step=1, label="Steps", elem_id="steps")
            scale = gr.Slider(1, MOST_GUIDANCE, guidance, step=0.5, label="Guidance", elem_id="guidance")
        concepts = _concept_rows(studio)
        with gr.Row():
            go = gr.Button("Generate", variant="primary", elem_id="generate")
            stop = gr.Button("Cancel", elem_id="cancel")
        said = gr.Markdown("", elem_id="said")
        with gr.Row(elem_id="images"):
            original = _gallery("Original", "original")
            edited = _gallery("Edited", "edited")
        given = [prompt, seeds, n_steps, scale, *concepts]
        asks = [go.click, prompt.submit, seeds.submit, *(control.input for control in concepts)]
        follow = (_follow(studio, files), [*given, number], [original, edited, said])
        gr.on(asks, *follow, **QUIET, **LAST)
        stop.click(_cancelling(studio), number, said, api_visibility="private", queue=False, js=COUNTED)
        page.unload(_leaving(studio))
        _grid_part(studio, files, given, number)
        _attack_part(studio, files, given, number)
        facts = _facts_part(studio)
        _written_part(studio, given, facts, seen)
        page.load(_opening(studio), None, [*concepts, facts, seen, notice], **QUIET).then(*follow, **QUIET, **LAST)
    return page


def _concept_rows(studio: Studio) -> list[Any]:
    """A check box and a slider for each target, in this order."""
    found: list[Any] = []
    anchors = {concept["target"]: concept.get("anchor") for concept in studio.run.concepts}
    with gr.Group(elem_id="concepts"):
        for target, strength in studio.strengths.items():
            said = f"{target} → {anchors[target]}" if anchors[target] else target
            with gr.Row(elem_classes="concept"):
                found.append(gr.Checkbox(True, label=said, min_width=120, scale=1))
                found.append(strength_slider(target, strength, studio.takes_strength))
    return found


def _opening(studio: Studio) -> Callable[[], list[Any]]:
    """What a page that is opened shows of the state that is current then: strengths, where it comes from, its id."""

    def opening() -> list[Any]:
        strengths, found = studio.strengths, list[Any]()
        for target in studio.live.targets:
            found += [target in strengths, strengths.get(target, 1.0)]
        with _told():
            return [*found, facts_of(studio), studio.state, OUTDATED if studio.outdated else ""]

    return opening


def _gallery(label: str, name: str) -> Any:
    return gr.Gallery(label=label, elem_id=name, columns=2, object_fit="contain", format="png", interactive=False)


def _asked(studio: Studio, values: Sequence[Any]) -> Asked:
    """What is set on the page.

    Raises:
        UserError: seeds that are no numbers.
    """
    prompt, seeds, steps, guidance, *concepts = values
    try:
        numbers = tuple(int(seed) for seed in str(seeds).replace(",", " ").split())
    except ValueError:
        raise UserError(f"seeds={seeds} must be whole numbers, as in 0, 1, 2, 3.") from None
    pairs = zip(studio.live.targets, concepts[::2], concepts[1::2], strict=True)
    strengths = {target: float(strength) for target, ticked, strength in pairs if ticked}
    asked = Asked(str(prompt), numbers, int(steps), float(guidance), strengths)
    asked.check()
    return asked


@contextmanager
def _told() -> Iterator[None]:
    """What a user can mend is shown on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=SAID, print_exception=False) from error


def _follow(studio: Studio, files: ImageFiles) -> Callable[..., Any]:
    """Images of what is set."""

    def follow(request: gr.Request, *values: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008 - Gradio's
        *given, number = values
        with _told():
            asked = _asked(studio, given)
            try:
                shown = studio.images(asked, str(request.session_hash), _bar(progress), int(number))
            except Cancelled:
                return [gr.skip()] * 3
        names = [f"seed {seed}" for seed in asked.seeds]
        original, edited = (_captioned(files, images, names) for images in (shown.original, shown.edited))
        return [original, edited, _timed(shown)]

    return follow


def _cancelling(studio: Studio) -> Callable[..., str]:
    """End what is generated for the user."""

    def cancel(request: gr.Request, number: float) -> str:
        studio.turns.cancel(str(request.session_hash), int(number))
        return "Cancelled."

    return cancel


def _leaving(studio: Studio) -> Callable[..., None]:
    """End what is generated for a user who has closed the page."""

    def leave(request: gr.Request) -> None:
        studio.turns.leave(str(request.session_hash))

    return leave


def _bar(progress: gr.Progress) -> Callable[[int, int], None]:
    return lambda done, whole: progress((done, whole), desc="generating", unit="steps")


def _captioned(files: ImageFiles, images: Sequence[Any], names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(files.places(images), names, strict=True))


def _timed(shown: Shown) -> str:
    return f"Solved and swapped in {shown.solving:.2f} s, generated in {shown.generating:.1f} s."


def _at(asked: Asked) -> str:
    """The strengths that images were made with."""
    return "at " + (", ".join(f"{target} {strength:g}" for target, strength in asked.strengths.items()) or "no concept")


def _first_prompt(studio: Studio) -> str:
    return f"a photo of a {studio.run.targets[0]}"


# --- the parts below the images --------------------------------------------------------------------------------------


def _grid_part(studio: Studio, files: ImageFiles, given: Sequence[Any], number: Any) -> None:
    """Targets and preserved names, original beside edited."""
    with gr.Accordion("Targets and preserved names", open=False, elem_id="grid"):
        names = gr.Textbox(
            ", ".join(preserved_names(studio.run)),
            label="Preserved names",
            info="An image of each, of the first seed.",
            elem_id="beside",
        )
        make = gr.Button("Generate the grid", elem_id="make")
        gallery = gr.Gallery(
            label="Original and edited",
            elem_id="named",
            columns=4,
            height="auto",
            object_fit="contain",
            format="png",
            interactive=False,
        )

    def grid(request: gr.Request, names: str, *values: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        *given, number = values
        with _told():
            asked, wanted = _asked(studio, given), [name.strip() for name in names.split(",") if name.strip()]
            try:
                named, shown = studio.grid(asked, wanted, str(request.session_hash), _bar(progress), int(number))
            except Cancelled:
                return gr.skip()
        both = [image for pair in zip(shown.original, shown.edited, strict=True) for image in pair]
        captions = [f"{name}: {kind}" for name in named for kind in ("original", "edited")]
        return gr.Gallery(_captioned(files, both, captions), label=f"Original and edited, {_at(asked)}")

    make.click(grid, [names, *given, number], gallery, **QUIET, **LAST)


def _attack_part(studio: Studio, files: ImageFiles, given: Sequence[Any], number: Any) -> None:
    """An image of a target, before and after an attack on the edit that is set."""
    with gr.Accordion("Attack", open=False, elem_id="attack"):
        gr.Markdown(ATTACK)
        with gr.Row():
            target = gr.Dropdown(list(studio.live.targets), label="Target")
            tries = gr.Slider(
                1, MOST_TOKEN_STEPS, Strengths().token_steps, step=1, label="Steps of the attack", elem_id="tries"
            )
            start = gr.Button("Attack", elem_id="start")
        shown = gr.Gallery(
            label="Attacked", elem_id="attacked", columns=3, object_fit="contain", format="png", interactive=False
        )

    def attacked(request: gr.Request, *values: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        target, tries, *given, number = values
        with _told():
            settings = (_bar(progress), int(number), Strengths(token_steps=int(tries)))
            asked = _asked(studio, given)
            try:
                found = attack(studio, asked, target, str(request.session_hash), *settings)
            except Cancelled:
                return gr.skip()
        names = [f"{target}: original", "edited", "edited, with the tokens"]
        images = _captioned(files, [found.original, found.before, found.after], names)
        return gr.Gallery(images, label=f"Attacked, {_at(asked)}")

    start.click(attacked, [target, tries, *given, number], shown, **QUIET, **LAST)


def _facts_part(studio: Studio) -> Any:
    with gr.Accordion("Where it comes from", open=False, elem_id="facts"):
        return gr.Markdown(facts_of(studio))


def _written_part(studio: Studio, given: Sequence[Any], facts: Any, seen: Any) -> None:
    """Save and export."""
    with gr.Accordion("Save and export", open=False, elem_id="written"):
        with gr.Row():
            reason = gr.Textbox("", label="Reason", elem_id="reason")
            requester = gr.Textbox("", label="Requested by")
            save = gr.Button("Save as a state of the library", elem_id="save")
        with gr.Row():
            form = gr.Dropdown(list(FORMATS), value=FORMATS[0], label="Format", elem_id="format")
            name = gr.Textbox("", label="Name of the export", elem_id="name")
            export = gr.Button("Export", elem_id="export")
        done = gr.Markdown("", elem_id="done")

    def saved(reason: str, requester: str, seen: str, *values: Any) -> Any:
        with _told():
            state = studio.save(_asked(studio, values), reason, requester, seen)
        return [f"Saved as state `{state}` of `{studio.run.home}`.", facts_of(studio), state]

    def exported(form: str, name: str, *values: Any) -> Any:
        with _told():
            place = studio.export(_asked(studio, values), form, name)
        return f"Written to `{place}`."

    save.click(saved, [reason, requester, seen, *given], [done, facts, seen], **QUIET, js=CLEARED % "given")
    export.click(exported, [form, name, *given], done, **QUIET, js=CLEARED % "given")
