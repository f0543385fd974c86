"""Erase concepts from a text-to-image model; ``python erase.py --help`` lists the subcommands."""

from mace_pl.cli import erase_main

if __name__ == "__main__":
    erase_main()
