"""Answers in the place of ``erase.py`` where a script starts it: leaves a folder with its words, or made-up scores.

It fuses and scores only runs that are there, as the program does.
"""

import json
import sys
from pathlib import Path

TOP = {"acc_e": 0.1, "acc_s": 0.9, "acc_g": 0.2, "h": 0.5, "h_c": 0.25, "by_word": {"twemoji": 0.5, "noto": 0.75}}
CLIP = {"h_a": 1.0, "by_word": {"twemoji": 25.0, "noto": 26.0}}
ROWS = [{"word": "noto", "role": "kept"}, {"word": "twemoji", "role": "erased"}]
BEFORE = {"top1": TOP | {"acc_e": 1.0, "acc_s": 1.0, "acc_g": 1.0}, "clip_score": CLIP}
SCORES = {"before": BEFORE, "after": {"top1": TOP, "clip_score": CLIP}, "concepts": ROWS}

command, *words = sys.argv[1:]
split = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
options = dict(zip(split[::2], split[1::2], strict=True))
runs = json.loads(options.get("--model.runs", "[]")) + ([options["--run"]] if command == "fuse" else [])
missing = [run for run in runs if not Path(run, "words.json").is_file()]
if missing:
    sys.exit(f"{missing} are not there")
if command in ("fit", "fuse"):
    folder = Path(options["--output_dir"])
    folder.mkdir(parents=True)
    (folder / "words.json").write_text(json.dumps([command, *words]))
else:
    output = Path(options["--model.output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"scores": {"original": {}} | {Path(run).name: SCORES for run in runs}}))
