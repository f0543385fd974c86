"""Seeds of the tests: fixed, and shifted together to see what other random numbers give."""

import os
import random
import zlib

import numpy as np
import torch

#: 0 as the tests run; tests/measure_tolerances.py goes through others
SHIFT = int(os.environ.get("MACE_PL_TEST_SEED", "0"))


def seeded(number: int) -> int:
    return number + 1000 * SHIFT


def seed_generators(name: str) -> None:
    """The global generators start from a number of one's own: the name of a test or a fixture."""
    number = seeded(zlib.crc32(name.encode())) % 2**32
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
