"""The slider of a strength."""

from __future__ import annotations

import gradio as gr

SAID = 20  # seconds for which an error is shown


class Strength(gr.Slider):  # type: ignore[misc] # of Gradio, which is an extra
    """A slider beside whose handle a number can be typed; what is no strength is told in words."""

    is_template = True  # it looks as any slider

    def preprocess(self, payload: float | None) -> float:
        """The number.

        Raises:
            gr.Error: there is none, or it is not between 0 and 1.
        """
        if payload is None or not self.minimum <= payload <= self.maximum:
            said = f"{self.label}: give a number from {self.minimum:g} to {self.maximum:g}."
            raise gr.Error(said, duration=SAID, print_exception=False)
        return float(super().preprocess(payload))
