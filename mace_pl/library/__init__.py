"""A library of concepts: states, entries, history, and one writer at a time; see :mod:`mace_pl.files.versions`."""
