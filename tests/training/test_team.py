"""How several processes are started: as the documentation writes it, torchrun passes all options on."""

import re
from pathlib import Path

from torch.distributed.run import parse_args

DOCS = Path(__file__).resolve().parents[2] / "docs/hardening.md"


def test_torchrun_leaves_the_options_of_the_documented_command_alone() -> None:
    written = re.search(r"`torchrun (.+?) …`", DOCS.read_text(encoding="utf-8"))
    assert written is not None
    parsed = parse_args([*written[1].split(), "runs/ship", "--seed", "3"])
    given = [word for word in parsed.training_script_args if word != "--"]
    assert (parsed.nproc_per_node, parsed.training_script) == ("4", "erase.py")
    assert given == ["harden", "--run", "runs/ship", "--seed", "3"]
