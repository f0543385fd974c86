"""What preserving the words of captions alone changes, without their padding: an edit with one and with the other.

Run it as ``python scripts/tokens.py``. Runs that exist are kept; delete a folder to make it again. Takes about
five minutes on two CPU cores; the table is written to checkpoints/scores/tokens.md, with the distance to the
original's images in the page beside it. Only the captions are preserved, so that they alone make the difference.
"""

from __future__ import annotations

import json
from pathlib import Path

from runs import SCORES, command, concepts_of, fit, score

SHIP = "configs/emoji/erase_ship.yaml"
STATISTICS = Path("checkpoints/statistics")
TARGETS = ("ship", "cat")


def main(seeds: int = 20) -> None:
    """Both statistics, an edit per target with each, and their scores."""
    runs = []
    for tokens in ("all", "caption"):
        file = STATISTICS / f"tokens_{tokens}.safetensors"
        if not file.exists():
            command(
                "cache", "--config", "configs/emoji/cache.yaml", "--model.output", str(file), "--data.tokens", tokens
            )
        alone = ["--model.prior", str(file), "--model.domain_names", "null"]
        alone += [
            "--model.refine",
            '{"identity": 1.0, "prior": 0.003}',
            "--model.fuse",
            '{"identity": 1.0, "prior": 0.01}',
        ]
        for target in TARGETS:
            concept = concepts_of(SHIP)[0] | {"target": target}
            runs.append(fit(SHIP, f"tokens_{tokens}_{target}", [concept], *alone))
    score("configs/evaluate/emoji_ten.yaml", "tokens", runs, "--data.seeds", str(seeds))
    for name, result in json.loads((SCORES / "tokens.json").read_text(encoding="utf-8"))["scores"].items():
        if name != "original":
            top, quality = result["after"]["top1"], result["quality"]
            print(f"{name}: H_o {top['h']:.3f}, Acc_s {top['acc_s']:.3f}, distance {quality['distance']:.4f}")


if __name__ == "__main__":
    main()
