"""Score edited models beside their original under ``test``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mace_pl.artifacts import claim_output, read_tensors, write_json
from mace_pl.metrics import ClassCounts
from mace_pl.paths import resolve
from mace_pl.pipelines import load_pipeline
from mace_pl.sampling import draw
from mace_pl.scores import ClipClassifier, harmonic_mean

ORIGINAL = "original"
COLUMNS = ("run", "Acc_e", "Acc_s", "Acc_g", "H")


class ErasureScores(LightningModule):
    """Acc_e, Acc_s, Acc_g and H_o of edits by a CLIP classifier, each beside the original with the same seeds.

    The original's pictures are drawn once for all runs; a run is drawn for the names and for its targets' synonyms.

    Args:
        pretrained: the original pipeline: folder, hub id or single checkpoint.
        revision: branch, tag or commit of a hub id.
        variant: which of its files are read, as in ``fp16``.
        layout: folder with the configurations of a single checkpoint's parts.
        runs: output folders of ``fit``; each brings its targets and its ``refined.safetensors``. None scores the
            original alone.
        classifier: folder of the CLIPModel that judges.
        output: the JSON file with all figures; a table in Markdown is written beside it.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        overwrite: replace ``output`` where it exists.
    """

    def __init__(
        self,
        pretrained: str,
        runs: list[str] | None = None,
        classifier: str = "checkpoints/emoji/clip",
        output: str = "checkpoints/scores.json",
        steps: int = 30,
        guidance: float = 5.0,
        overwrite: bool = False,
        revision: str | None = None,
        variant: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        claim_output(Path(output), overwrite, "model.output")
        self.pretrained, self.classifier, self.output = pretrained, classifier, Path(output)
        self.runs = {Path(run).name: run for run in runs or []}
        if len(self.runs) < len(runs or []) or ORIGINAL in self.runs:
            raise ValueError(f"model.runs={runs} need folder names that differ, and none called {ORIGINAL!r}.")
        self.steps, self.guidance = steps, guidance
        self.pipeline = load_pipeline(pretrained, revision, variant, layout)
        self.unet = self.pipeline.unet
        self.targets: dict[str, list[str]] = {}
        self.weights: dict[str, dict[str, Tensor]] = {ORIGINAL: {}}
        for name, run in self.runs.items():
            self.read(name, resolve(run) / "refined.safetensors")
        self.scores: dict[str, Any] = {}

    def read(self, name: str, file: Path) -> None:
        """Take a run's weights and targets.

        Raises:
            ValueError: no such file, or one made from another model.
        """
        if not file.is_file():
            raise ValueError(f"model.runs: {file.parent} has no refined.safetensors. Give output folders of fit.")
        weights, meta = read_tensors(file, "refined", "model.runs")
        own = self.unet.state_dict()
        wrong = [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]
        if wrong:
            raise ValueError(f"model.runs: {file} was made from another model: {wrong[0]} does not fit its UNet.")
        self.weights[ORIGINAL] |= {key: own[key].clone() for key in weights}
        self.weights[name] = weights
        self.targets[name] = [concept["target"] for concept in meta["concepts"]]

    def setup(self, stage: str) -> None:
        """Build a classifier per template and a count per model."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.names: list[str] = data.names
        erased = {t for targets in self.targets.values() for t in targets}
        self.synonyms = {t: words for t, words in data.synonyms.items() if t in erased or not self.runs}
        self.words = data.names + [word for words in self.synonyms.values() for word in words]
        self.meaning = {n: n for n in self.names} | {w: t for t, words in self.synonyms.items() for w in words}
        self.judges = torch.nn.ModuleList(ClipClassifier(self.classifier, self.names, t) for t in data.templates)
        self.counts = torch.nn.ModuleList(ClassCounts(len(self.words), len(self.names)) for _ in self.weights)

    def drawn(self, name: str) -> set[str]:
        """The words that are drawn by a model."""
        if name == ORIGINAL:
            return set(self.words)
        return {*self.names, *(w for t in self.targets[name] for w in self.synonyms.get(t, []))}

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Draw the batch's rows with every model that needs them, and count what the classifier sees."""
        self.pipeline.to(self.device)
        for counts, (name, weights) in zip(self.counts, self.weights.items(), strict=True):
            words = self.drawn(name)
            rows = [i for i, word in enumerate(batch["word"]) if word in words]
            if not rows:
                continue
            self.unet.load_state_dict(self.weights[ORIGINAL] | weights, strict=False)
            prompts, seeds = ([batch[key][i] for i in rows] for key in ("prompt", "seed"))
            pictures = draw(self.pipeline, prompts, seeds, self.steps, self.guidance, len(rows))
            judge = self.judges[batch["template"]]
            index = torch.tensor([self.words.index(batch["word"][i]) for i in rows], device=self.device)
            counts.update(index, judge(pictures))  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        """Add up the processes' counts, print the table and write the figures."""
        results = [metric.compute() for metric in self.counts]  # type: ignore[operator]
        tables = dict(zip(self.weights, results, strict=True))
        self.scores = {ORIGINAL: {kind: self.accuracies(table, []) for kind, table in tables[ORIGINAL].items()}}
        for name, targets in self.targets.items():
            self.scores[name] = {
                when: {kind: self.accuracies(table, targets) for kind, table in tables[model].items()}
                for when, model in (("before", ORIGINAL), ("after", name))
            }
        if self.trainer.is_global_zero:
            self.write()

    def accuracies(self, table: Tensor, targets: Sequence[str]) -> dict[str, Any]:
        """Acc_e, Acc_s, Acc_g and H from a [W, C] table of frequencies or mean probabilities."""
        right = {w: float(table[i, self.names.index(self.meaning[w])]) for i, w in enumerate(self.words)}
        groups = {
            "acc_e": [right[t] for t in self.names if t in targets],
            "acc_s": [right[n] for n in self.names if n not in targets],
            "acc_g": [right[w] for t in targets for w in self.synonyms.get(t, [])],
        }
        means: dict[str, Any] = {k: sum(v) / len(v) for k, v in groups.items() if v}
        if {"acc_e", "acc_s"} <= set(means):
            parts = [1 - means["acc_e"], means["acc_s"], *([1 - means["acc_g"]] if "acc_g" in means else [])]
            means["h"] = harmonic_mean(parts)
        return means | {"by_word": {w: v for w, v in right.items() if v == v}}  # a word not drawn here has no value

    def rows(self) -> list[list[str]]:
        """Top-1 accuracies before → after, one row per run; the original alone where there is none."""
        if not self.runs:
            return [[ORIGINAL, "–", f"{self.scores[ORIGINAL]['top1']['acc_s']:.3f}", "–", "–"]]
        rows = []
        for name in self.runs:
            before, after = (self.scores[name][when]["top1"] for when in ("before", "after"))
            cells = [f"{before[k]:.3f} → {after[k]:.3f}" if k in after else "–" for k in ("acc_e", "acc_s", "acc_g")]
            rows.append([name, *cells, f"{after['h']:.3f}" if "h" in after else "–"])
        found = [self.scores[name]["after"]["top1"] for name in self.runs]
        if len(found) > 1 and all("h" in scores for scores in found):
            rows.append([f"mean of {len(found)}", "", "", "", f"{sum(s['h'] for s in found) / len(found):.3f}"])
        return rows

    def write(self) -> None:
        """The figures as JSON, and as a table in Markdown and on the screen."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        settings = {
            "pretrained": self.pretrained,
            "runs": {name: {"folder": run, "targets": self.targets[name]} for name, run in self.runs.items()},
            "classifier": self.classifier,
            "names": self.names,
            "synonyms": self.synonyms,
            "templates": data.templates,
            "seeds": data.seeds,
            "steps": self.steps,
            "guidance": self.guidance,
        }
        write_json(self.output, {"settings": settings, "scores": json.loads(json.dumps(self.scores))})
        lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        markdown = self.output.with_suffix(".md")
        markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
        table = Table(title="Top-1 accuracy, before → after")
        for column in COLUMNS:
            table.add_column(column)
        for row in self.rows():
            table.add_row(*row)
        console = Console()
        console.print(table)
        console.print(f"Written to {self.output} and {markdown}", highlight=False)
