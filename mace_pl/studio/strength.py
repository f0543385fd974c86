"""The slider of a strength."""

from __future__ import annotations

from typing import Any

import gradio as gr

SAID = 20  # seconds for which an error is shown


def strength_slider(target: str, strength: float, able: bool) -> Any:
    """A slider from 0 to 1, beside whose handle a number can be typed; what is no strength is told in words.

    Args:
        target: whose strength it is.
        strength: at first.
        able: whether it can be moved.
    """
    label = f"Strength of {target}"
    slider = gr.Slider(0, 1, strength, step=0.05, label=label, scale=3, interactive=able)
    plain = slider.preprocess  # of this slider alone: Gradio writes a file of types beside the code of a subclass

    def checked(payload: float | None) -> float:
        if payload is None or not 0 <= payload <= 1:
            raise gr.Error(f"{label}: give a number from 0 to 1.", duration=SAID, print_exception=False)
        return float(plain(payload))

    slider.preprocess = checked
    return slider
