"""Score an edited model beside its original under ``test``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from mace_pl.artifacts import claim_output, write_json
from mace_pl.metrics import ClassCounts
from mace_pl.paths import resolve
from mace_pl.pipelines import load_pipeline
from mace_pl.sampling import draw
from mace_pl.scores import ClipClassifier, harmonic_mean


class ErasureScores(LightningModule):
    """Acc_e, Acc_s, Acc_g and H_o of an edit by a CLIP classifier, the original beside it with the same seeds.

    Args:
        pretrained: the original pipeline.
        targets: the erased names; the other names of the data are the kept ones. Empty scores the original alone.
        run: output folder of ``fit``, whose ``refined.safetensors`` is applied; needed where there are targets.
        classifier: folder of the CLIPModel that judges.
        output: the JSON file with all figures.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        overwrite: replace ``output`` where it exists.
    """

    def __init__(
        self,
        pretrained: str,
        targets: list[str],
        run: str | None = None,
        classifier: str = "checkpoints/emoji/clip",
        output: str = "checkpoints/scores.json",
        steps: int = 30,
        guidance: float = 5.0,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        claim_output(Path(output), overwrite, "output")
        if bool(targets) != (run is not None):
            raise ValueError(f"model.targets={targets} and model.run={run} go together: give both, or neither.")
        self.targets, self.classifier, self.output = targets, classifier, Path(output)
        self.steps, self.guidance, self.pretrained, self.run = steps, guidance, pretrained, run
        self.pipelines = {"original": load_pipeline(pretrained)}
        if run is not None:
            weights = resolve(run) / "refined.safetensors"
            if not weights.is_file():
                raise ValueError(f"model.run={run} has no refined.safetensors. Give an output folder of fit.")
            edited = load_pipeline(pretrained)
            unexpected = edited.unet.load_state_dict(load_file(weights), strict=False).unexpected_keys
            if unexpected:
                raise ValueError(f"model.run={run} was made from another model: {unexpected[0]} is not in its UNet.")
            self.pipelines["edited"] = edited
        self.scores: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Build the classifier over the data's names."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for target in self.targets:
            if target not in data.names:
                raise ValueError(f"model.targets names {target!r}, which is not in data.names={data.names}.")
        self.names, self.words = data.names, list(data.words)
        self.meaning = [data.names.index(c) for c in data.words.values()]
        self.judge = ClipClassifier(self.classifier, data.names)
        counts = {name: ClassCounts(len(self.words), len(data.names)) for name in self.pipelines}
        self.counts = torch.nn.ModuleDict(counts)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Draw the batch's rows with every model and count what the classifier sees."""
        words = torch.tensor([self.words.index(w) for w in batch["word"]], device=self.device)
        for name, pipeline in self.pipelines.items():
            pipeline.to(self.device)
            rows = (batch["prompt"], batch["seed"], self.steps, self.guidance, len(words))
            self.counts[name].update(words, self.judge(draw(pipeline, *rows)))  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        """Add up the processes' counts, print the table and write the figures."""
        results = {name: metric.compute() for name, metric in self.counts.items()}  # type: ignore[operator]
        for name, result in results.items():
            self.scores[name] = {kind: self.accuracies(table) for kind, table in result.items()}
        if self.trainer.is_global_zero:
            settings = {"steps": self.steps, "guidance": self.guidance, "classifier": self.classifier, "run": self.run}
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            settings |= {"pretrained": self.pretrained, "targets": self.targets, "seeds": data.seeds}
            write_json(self.output, {"settings": settings | {"template": data.template}, "scores": self.scores})
            self.show()

    def accuracies(self, table: Tensor) -> dict[str, Any]:
        """Acc_e, Acc_s, Acc_g and H_o from a [W, C] table of frequencies or mean probabilities."""
        right = {w: float(table[i, c]) for i, (w, c) in enumerate(zip(self.words, self.meaning, strict=True))}
        names = set(self.names)
        groups = {
            "acc_e": [right[t] for t in self.targets],
            "acc_s": [right[n] for n in self.names if n not in self.targets],
            "acc_g": [right[w] for w in self.words if w not in names],
        }
        means: dict[str, Any] = {k: sum(v) / len(v) for k, v in groups.items() if v}
        if "acc_e" in means:
            parts = [1 - means["acc_e"], means["acc_s"], *([1 - means["acc_g"]] if "acc_g" in means else [])]
            means["h"] = harmonic_mean(parts)
        return means | {"by_word": right}

    def show(self) -> None:
        """The figures as a table."""
        table = Table(title="Scores (top-1 accuracy, mean probability)")
        for column in ("model", "Acc_e", "Acc_s", "Acc_g", "H"):
            table.add_column(column)
        for name, kinds in self.scores.items():
            for kind, values in kinds.items():
                cells = [f"{values[k]:.3f}" if k in values else "–" for k in ("acc_e", "acc_s", "acc_g", "h")]
                table.add_row(f"{name}, {kind}", *cells)
        console = Console()
        console.print(table)
        console.print(f"Written to {self.output}")
