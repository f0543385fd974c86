"""The command ``harden`` with few and small steps."""

from pathlib import Path

FEW = {"rank": 2, "rounds": 2, "steps": 2, "found": 2, "tokens": 2, "attack_steps": 2, "attack_samples": 2}
FEW |= {"images": 2, "preserved_images": 2, "batch": 4, "preserved_batch": 2}


def command(run: Path, output: Path, *more: str, **harden: object) -> list[str]:
    few = [word for name, value in (FEW | harden).items() for word in (f"--harden.{name}", str(value))]
    return ["harden", "--run", str(run), "--output_dir", str(output), "--preserved", "[cat,bird]", *few, *more]
