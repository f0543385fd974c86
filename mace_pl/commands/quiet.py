"""A terminal with the command's own lines: what libraries say goes into the run's log."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mace_pl.errors import Advice
from mace_pl.files.run_log import RunLog

#: loggers to which lightning gives handlers of its own when it is imported
LIGHTNING = ("lightning", "lightning.pytorch", "lightning.fabric")
ADVICE = re.compile(rf": {Advice.__name__}: (.*)\n")  # as the standard library formats a warning


class Terminal(logging.Handler):
    """Shows our own log lines and :class:`Advice` on stderr, on rank 0 alone, and each of them once: a command that
    solves several times says the same of each solution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show the message without its origin."""
        from lightning.pytorch.utilities import rank_zero_only  # its import waits until something is shown

        message = record.getMessage()
        if record.name == "py.warnings":
            found = ADVICE.search(message)
            message = found[1] if found else ""
        if message and message not in self.shown and getattr(rank_zero_only, "rank", 0) == 0:
            self.shown.add(message)
            print(message, file=sys.stderr)  # a progress bar that is shown may have put itself between


@contextmanager
def quiet_terminal() -> Iterator[RunLog]:
    """Send warnings and log lines of all libraries into a log, and our own to the terminal too, inside the context.

    Who has set ``DIFFUSERS_VERBOSITY`` or ``TRANSFORMERS_VERBOSITY`` sees on the terminal what it asks for. Where a
    command ends with an error, the terminal says where its log is.

    Yields:
        The log, which has no file yet.
    """
    log, terminal, own = RunLog(), Terminal(), logging.getLogger("mace_pl")
    places = [(logging.getLogger(), log), (own, terminal), (logging.getLogger("py.warnings"), terminal)]
    level, passing = own.level, {name: logging.getLogger(name).propagate for name in LIGHTNING}
    own.setLevel(logging.INFO)
    for logger, handler in places:
        logger.addHandler(handler)
    logging.captureWarnings(True)
    before = quiet_lightning()
    try:
        quiet_models()
        yield log
    except BaseException:
        if log.place is not None:
            log.handle(own.makeRecord(own.name, logging.ERROR, __file__, 0, "the error:", (), sys.exc_info()))
            print(f"The log of the run is {log.place}", file=sys.stderr)
        raise
    finally:
        logging.captureWarnings(False)
        for logger, handler in [*places, *before]:
            (logger.addHandler if (logger, handler) in before else logger.removeHandler)(handler)
        own.setLevel(level)
        for name, passed in passing.items():
            logging.getLogger(name).propagate = passed
        log.shut()


def quiet_lightning() -> list[tuple[logging.Logger, logging.Handler]]:
    """Let lightning's loggers pass on what they are told, without handlers of their own.

    Returns:
        What was taken away.
    """
    import lightning  # noqa: F401 - it sets its loggers up

    taken = []
    for logger in map(logging.getLogger, LIGHTNING):
        taken += [(logger, handler) for handler in logger.handlers]
        logger.propagate = True
    for logger, handler in taken:
        logger.removeHandler(handler)
    return taken


def quiet_models() -> None:
    """No progress bars of diffusers and transformers for files that are read, and their log lines passed on."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for name, library in (("DIFFUSERS", of_diffusers), ("TRANSFORMERS", of_transformers)):
        library.enable_propagation()
        if f"{name}_VERBOSITY" not in os.environ:
            library.disable_default_handler()
            library.disable_progress_bar()
