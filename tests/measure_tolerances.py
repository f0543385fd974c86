"""Runs the tests that have tolerances on other seeds and prints how much of each tolerance was used.

    OMP_NUM_THREADS=1 python tests/measure_tolerances.py
    OMP_NUM_THREADS=1 python tests/measure_tolerances.py --seeds 5 tests/integration/test_erase.py
    tests/export/test_formats.py

A first run of all tests finds those with tolerances; the slow ones among them are run on fewer seeds. ``seen`` in
``tests/support/tolerances.py`` is the last column but one. A test that fails on a seed is listed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

TIMES = re.compile(r"^([\d.]+)s (setup|call) +(\S+)", re.MULTILINE)


def run(tests: list[str], seed: int, record: Path) -> str:
    """The tests' output."""
    environment = os.environ | {"MACE_PL_TEST_SEED": str(seed), "MACE_PL_RECORD": str(record)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", "--durations-min=0.5"]
    done = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(f"seed {seed}: {line}", flush=True)
    print(f"seed {seed}: {done.stdout.splitlines()[-1] if done.stdout else done.stderr}", flush=True)
    return done.stdout


def recorded(record: Path) -> list[dict[str, str | float]]:
    return [json.loads(line) for line in record.read_text("utf-8").splitlines()] if record.exists() else []


def slow(output: str, tests: list[str], limit: float) -> set[str]:
    """Tests that take longer than ``limit`` seconds, and all of a file that prepares them for longer."""
    found = set()
    for seconds, phase, test in TIMES.findall(output):
        if float(seconds) > limit:
            file = test.split("::")[0]
            found |= {t for t in tests if t == test or (phase == "setup" and t.startswith(f"{file}::"))}
    return found


def table(lines: list[dict[str, str | float]]) -> str:
    shares: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for line in lines:
        shares[str(line["name"])].append((float(line["share"]), str(line["test"])))
    rows = [f"{'tolerance':20} {'checks':>7} {'seen':>10} {'margin':>10}  test"]
    for name, found in sorted(shares.items(), key=lambda pair: -max(pair[1])[0]):
        largest, test = max(found)
        margin = f"{1 / largest:10.1f}" if largest else f"{'-':>10}"
        rows.append(f"{name:20} {len(found):7} {largest:10.2g} {margin}  {test}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=["tests"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slow_seeds", type=int, default=3, help="seeds for tests slower than --limit seconds")
    parser.add_argument("--limit", type=float, default=5.0)
    parser.add_argument("--record", type=Path, default=Path("tolerances.jsonl"), help="lines of what was measured")
    args = parser.parse_args()
    args.record.unlink(missing_ok=True)
    output = run(args.tests, 0, args.record)
    tests = sorted({str(line["test"]) for line in recorded(args.record)})
    skipped = slow(output, tests, args.limit)
    print(f"{len(tests)} tests have tolerances, {len(skipped)} of them are slow", flush=True)
    for seed in range(1, args.seeds):
        run(tests if seed < args.slow_seeds else [t for t in tests if t not in skipped], seed, args.record)
    print(table(recorded(args.record)))


if __name__ == "__main__":
    main()
