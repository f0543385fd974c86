"""A command that kills its own process before the system does something to a file, as a crash at that moment would.

Arguments: the audit event, such as ``os.rename``; the end of the name of the file; the words of the command.
"""

from __future__ import annotations

import os
import signal
import sys

from mace_pl.cli import erase_main


def main() -> None:
    event, name, *words = sys.argv[1:]

    def kill(found: str, args: tuple[object, ...]) -> None:
        if found == event and any(str(arg).endswith(name) for arg in args[:2]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    erase_main(words)


if __name__ == "__main__":
    main()
