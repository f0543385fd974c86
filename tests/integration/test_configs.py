"""Every configuration parses against the real signatures, by the command that its header names."""

import re
from pathlib import Path

import pytest

from mace_pl.cli import erase_main
from mace_pl.train_cli import train_main

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ROOT / "configs" / "compare"  # of scripts/compare_methods.py; tests/scripts reads them
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent != COMPARED)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.relative_to(ROOT)))
def test_config_parses_by_its_own_command(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = re.search(r"python (erase|train)\.py (\w+) --config (\S+)", config.read_text(encoding="utf-8"))
    assert command is not None
    script, subcommand, named = command.groups()
    assert ROOT / named == config
    main = erase_main if script == "erase" else train_main
    with pytest.raises(SystemExit) as stop:
        main([subcommand, "--config", str(config), "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err
    assert "model:" in capsys.readouterr().out
