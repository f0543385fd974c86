"""``domain_names: auto`` in whole runs: chosen once, shown, written down, and the same when repeated or resumed."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.runs import config

from mace_pl.cli import erase_main
from mace_pl.commands.fuse import fuse_run
from mace_pl.concepts.concept import Concept
from mace_pl.concepts.preservation import StageWeights
from mace_pl.concepts.vocabulary import COMMON, OWN, STYLES_FILE, common_words, own_names
from mace_pl.evaluation.convolutional import ConvolutionalJudge
from mace_pl.methods import UCE
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.source import Source
from mace_pl.stages.preserve import preserving

JUDGE = str(Path(__file__).resolve().parents[2] / "checkpoints/emoji/judge/judge.safetensors")
NAMES = ["dog", "cat", "sky", "ground", "art", "house", "tree"]
QUIET = ["--save_pipeline", "false", "--report_seeds", "0"]
AUTO = ["--model.domain_vocabulary", json.dumps(NAMES), "--model.domain_affected", "3", "--model.refine.domain", "0.1"]


def written(run: Path) -> list[str]:
    """The names of a run's configuration, which has no vocabulary any more."""
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert model["domain_vocabulary"] is None
    return list(model["domain_names"])


def test_a_run_shows_and_writes_what_it_has_chosen_and_is_repeated_to_the_bit(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*config(tmp_path, toy_pipeline, "run", ["ship"]), "--model.method", "UCE", *AUTO, *QUIET]
    erase_main(args)
    names, said = written(tmp_path / "run"), capsys.readouterr().out
    assert names == [row["name"] for row in json.loads((tmp_path / "run" / "preserved.json").read_text())]
    assert len(names) == 3 and set(names) < set(NAMES)
    assert "3 of 7 names (model.domain_vocabulary) are preserved, those that" in " ".join(said.split())
    assert all(f"│ {name} " in said for name in names)
    erase_main(["fit", "--config", str(tmp_path / "run" / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    assert "would move most" not in capsys.readouterr().out
    fuse_run(str(tmp_path / "run"), str(tmp_path / "fused"), save_pipeline=False)
    first, *others = (load_file(tmp_path / run / "refined.safetensors") for run in ("run", "again", "fused"))
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)


def test_a_run_says_that_it_preserves_no_names(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model.method", "UCE", "--dry_run", "true"]
    for more, said in (([], True), (["--model.domain_names", "[cat]", "--model.refine.domain", "1"], False)):
        with suppress(SystemExit):
            erase_main([*config(tmp_path, toy_pipeline, "run", ["ship"]), *given, *more])
        shown = capsys.readouterr().out
        assert "Disk: " in shown and ("No names are preserved: " in shown) == said


def test_an_interrupted_run_keeps_its_choice(toy_pipeline: Path, tmp_path: Path) -> None:
    """The file that it leaves is what counts: here it names other names than the rule would."""
    args = [*config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "sky"}]), *AUTO, *QUIET]
    stop = [{"class_path": "support.runs.Stop", "init_args": {"after": 1}}]
    with pytest.raises(SystemExit):
        erase_main([*args, "--trainer.callbacks", json.dumps(stop)])
    file = tmp_path / ".run.training" / "names.json"
    left = json.loads(file.read_text())
    others = [name for name in NAMES if name not in left["names"]]
    file.write_text(json.dumps(left | {"names": dict.fromkeys(others, [1.0, 0.5])}))
    erase_main(args)
    assert written(tmp_path / "run") == others and not file.parent.exists()


def test_names_are_chosen_where_a_weight_wants_some_and_nothing_else_names_them(
    toy_pipeline: Path, tmp_path: Path
) -> None:
    backbone = backbone_of(load_pipeline(str(toy_pipeline)))

    def counted(**model: object) -> int:
        stages = [StageWeights(1.0, domain=0.1)] * 2
        return preserving({"domain_names": "auto", **model}, stages, UCE(), backbone, "").affected

    assert [counted(), counted(domain_vocabulary=["dog"]), counted(domain_affected=3)] == [100, 20, 3]

    def of(domain: float, known: list[str], **model: object) -> tuple[list[str], str]:
        settings = {"domain_names": "auto", **model}
        found = preserving(settings, [StageWeights(1.0, domain=domain)] * 2, UCE(), backbone, "", known)
        return list(found.vocabulary), found.chosen_from

    assert of(0.0, ["cat"]) == ([], "")
    assert of(0.1, ["cat"]) == (["cat"], OWN) and of(0.1, []) == (common_words(), COMMON)
    assert of(0.1, ["cat"], domain_vocabulary=["dog"]) == (["dog"], "model.domain_vocabulary")
    assert of(0.1, ["cat"], domain_names=None) == ([], "") == of(0.1, ["cat"], domain_names=["dog"])
    assert own_names(Source(folder=tmp_path)) == own_names(Source()) == []
    (tmp_path / "names.txt").write_text("ship\npalm tree\n")
    assert own_names(Source(folder=tmp_path)) == ["ship", "palm tree"]


@pytest.mark.parametrize(("kind", "wider"), [("object", []), ("style", ["blob"])])
def test_styles_of_the_model_count_where_a_style_is_erased(toy_pipeline: Path, kind: str, wider: list[str]) -> None:
    backbone = backbone_of(load_pipeline(str(toy_pipeline)))
    stages, concepts = [StageWeights(1.0, domain=0.1)] * 2, [Concept("ship", kind=kind)]
    for own, found in ((["cat"], ["cat", *wider]), ([], list(common_words()))):
        wanted = preserving({"domain_names": "auto"}, stages, UCE(), backbone, "", own, ["blob"])
        assert list(wanted.for_targets(concepts).vocabulary) == found


def test_the_bundled_model_says_what_it_knows() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [root / "checkpoints" / "emoji" / "names.txt", root / "configs" / "emoji" / "names.txt"]
    assert files[0].read_text() == files[1].read_text()
    assert {*own_names(Source(folder=files[0].parent), STYLES_FILE)} == {*ConvolutionalJudge(JUDGE, "styles").names}
    assert len(common_words()) > 400 and {"ship", "nurse", "watercolor"} <= set(common_words())
