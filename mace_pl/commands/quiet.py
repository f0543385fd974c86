"""Less of what other libraries print beside a command's own lines."""

from __future__ import annotations

import os
import warnings

from diffusers.utils import logging as of_diffusers
from transformers.utils import logging as of_transformers

#: notices that ask nothing of a user of this project
NOTICES = (
    ".*isinstance.treespec, LeafSpec.*",  # lightning with torch 2.13
    "Found .* module.s. in eval mode at the start of training.*",  # the model is frozen
    ".*configure_optimizers. returned .None.*",  # a closed form trains nothing
)


def quiet_libraries() -> None:
    """Errors alone of diffusers and transformers, no bars of theirs for files that are read; no :data:`NOTICES`.

    Who has set ``DIFFUSERS_VERBOSITY`` or ``TRANSFORMERS_VERBOSITY`` sees what it asks for.
    """
    for name, library in (("DIFFUSERS", of_diffusers), ("TRANSFORMERS", of_transformers)):
        if f"{name}_VERBOSITY" not in os.environ:
            library.set_verbosity_error()
            library.disable_progress_bar()
    for notice in NOTICES:
        warnings.filterwarnings("ignore", message=notice)
