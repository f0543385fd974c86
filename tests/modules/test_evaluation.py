import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from support.finished import finished_run
from support.forks import SCRIPT, forked, ranks
from support.runs import checksums, config, exit_message, naming
from support.tolerances import BY_HAND, DISTANCES, OTHER_SCORE, PUBLISHED, SAME_SCORE, SCORES, above, close

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.evaluation import compared
from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.evaluation.erasure_scores import harmonic
from mace_pl.files.artifacts import write_tensors
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.sampling import generate
from mace_pl.modules import evaluation


def test_harmonic_mean_of_the_papers_numbers() -> None:
    # mean over ten objects as published: Acc_e 8.49, Acc_s 97.35, Acc_g 10.53; H_o of the means is near the mean H_o
    close(mean_of(1 - 0.0849, 0.9735, 1 - 0.1053), 0.9265, PUBLISHED)
    # 100 celebrities as published: Acc_e 4.30, Acc_s 84.56, H_c 89.8
    close(mean_of(1 - 0.0430, 0.8456), 0.898, PUBLISHED)
    close(mean_of(0.5, 1.0), 2 / 3, BY_HAND)
    assert mean_of(0.0, 1.0) == 0


def mean_of(*parts: float) -> float:
    return float(harmonic([torch.tensor(part, dtype=torch.float64) for part in parts]))


def command(pipeline: Path, clip: Path, output: Path) -> list[str]:
    return [
        "test",
        *("--model.pretrained", str(pipeline), "--model.classifier", str(clip), "--model.output", str(output)),
        *("--model.steps", "2", "--data.seeds", "2", "--data.batch_size", "3", "--trainer.logger", "false"),
        *("--data.names", "[ship, dog, cat]", "--trainer.enable_progress_bar", "false"),
        *("--data.synonyms", "{ship: [boat, raft], dog: [hound]}"),
    ]


def test_the_original_alone_is_scored(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    erase_main(command(toy_pipeline, toy_clip, tmp_path / "s.json"))
    written = json.loads((tmp_path / "s.json").read_text())
    assert set(written["scores"]) == {"original"}
    top1 = written["scores"]["original"]["top1"]
    assert set(top1["by_word"]) == {"ship", "dog", "cat", "boat", "raft", "hound"}
    close(top1["acc_s"], sum(top1["by_word"][n] for n in ("ship", "dog", "cat")) / 3, BY_HAND)
    assert "acc_e" not in top1 and "h" not in top1


def test_a_file_of_names_is_not_replaced(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "s.md"  # which lies beside the figures
    names.write_text("ship\ndog\n")
    args = [*command(toy_pipeline, toy_clip, tmp_path / "s.json"), "--data.names", str(names), "--data.synonyms", "{}"]
    assert f"model.output would replace {names}, which is read as data.names" in exit_message(args, capsys)
    assert names.read_text() == "ship\ndog\n" and not (tmp_path / "s.json").exists()


def test_synonyms_of_what_stays_do_not_shift_the_rows_of_a_run(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path
) -> None:
    erase_main(config(tmp_path, toy_pipeline, "dogs", [{"target": "dog", "anchor": "ground"}]))
    more = ["--model.runs", f"[{tmp_path / 'dogs'}]"]
    after = []
    for size in ("5", "1"):  # five: a batch that begins with a ship's synonyms and ends with a dog's
        output = tmp_path / f"{size}.json"
        erase_main([*command(toy_pipeline, toy_clip, output), *more, "--data.batch_size", size])
        after.append(json.loads(output.read_text())["scores"]["dogs"])
    assert set(after[0]["after"]["top1"]["by_word"]) == {"ship", "dog", "cat", "hound"}
    assert after[0]["after"]["top1"] == after[1]["after"]["top1"]
    close(after[0]["quality"]["distance"], after[1]["quality"]["distance"], SCORES)


def test_runs_are_scored_beside_their_original(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    erase_main(config(tmp_path, toy_pipeline, "ships", [{"target": "ship", "anchor": "sky"}]))
    erase_main(config(tmp_path, toy_pipeline, "dogs", [{"target": "dog", "anchor": "ground"}]))
    before = checksums(toy_pipeline)
    runs = f"[{tmp_path / 'ships'}, {tmp_path / 'dogs'}]"
    templates = "['a photo of a {}', 'a drawing of a {}']"
    rows = [{"label": "refinement only", "acc_e": 0.5, "acc_s": 0.75, "h": 0.6}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    more = ["--model.runs", runs, "--data.templates", templates, "--model.ablation", f"[{tmp_path / 'rows.json'}]"]
    erase_main([*command(toy_pipeline, toy_clip, tmp_path / "s.json"), *more])
    assert checksums(toy_pipeline) == before
    assert not naming(tmp_path, tmp_path.parent, "config.yaml", "ships.yaml", "dogs.yaml")
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    after = scores["ships"]["after"]["top1"]
    assert set(after["by_word"]) == {"ship", "dog", "cat", "boat", "raft"}  # a dog's synonym is not generated for ships
    assert after["acc_e"] == after["by_word"]["ship"]
    close(after["acc_g"], (after["by_word"]["boat"] + after["by_word"]["raft"]) / 2, BY_HAND)
    right = [1 - after["acc_e"], after["acc_s"], 1 - after["acc_g"]]
    close(after["h"], mean_of(*right), BY_HAND)
    close(after["h_c"], mean_of(*right[:2]), BY_HAND)
    assert after["intervals"] is None and "no intervals" in scores["ships"]["missing"][0]  # two seeds say too little
    assert scores["ships"]["quality"]["fid"] > 0 and scores["ships"]["quality"]["kid"] is None
    assert scores["ships"]["quality"]["distance"] > 0
    assert "needs 50 images" in scores["ships"]["quality"]["missing"]["kid"]
    changes = [row["change"] for row in scores["ships"]["concepts"] if row["role"] == "kept"]
    assert changes == sorted(changes) and len(changes) == 2
    assert set(scores["ships"]["nearest"]["ship"]["embedding"]) == {"dog", "cat"}
    assert scores["dogs"]["before"]["top1"]["acc_e"] == scores["original"]["top1"]["by_word"]["dog"]
    # counts by hand, over both templates, from the edited pipeline that was written
    edited = StableDiffusionPipeline.from_pretrained(tmp_path / "ships" / "pipeline", safety_checker=None)
    seen = 0
    for template in ("a photo of a {}", "a drawing of a {}"):
        generated = generate(edited, [template.replace("{}", "cat")] * 2, [0, 1], steps=2, guidance=5.0)
        judge = ClipClassifier(str(toy_clip), ["ship", "dog", "cat"], template)
        seen += int((judge(generated).argmax(-1) == 2).sum())
    assert after["by_word"]["cat"] == seen / 4
    assert json.loads((tmp_path / "s.json").read_text())["ablation"] == rows
    assert "<td>refinement only</td>" in (tmp_path / "s.html").read_text(encoding="utf-8")
    table = (tmp_path / "s.md").read_text().splitlines()
    assert len(table) == 5 and table[-1].startswith("| mean of 2 ")


def test_later_seeds_and_another_scheduler_generate_what_is_said(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path
) -> None:
    more = ["--data.first_seed", "7", "--data.seeds", "1", "--model.scheduler", "EulerDiscreteScheduler"]
    erase_main([*command(toy_pipeline, toy_clip, tmp_path / "s.json"), *more])
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["settings"]["first_seed"], found["settings"]["scheduler"]) == (7, "EulerDiscreteScheduler")
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    prompt = "a photo of a ship"
    own, first = (generate(pipeline, [prompt], [seed], 2, 5.0, 1) for seed in (7, 0))
    judge = ClipClassifier(str(toy_clip), ["ship", "dog", "cat"], "a photo of a {}")
    a, b = (float(judge(images)[0, 0]) for images in (own, first))
    close(found["scores"]["original"]["probability"]["by_word"]["ship"], a, SAME_SCORE)
    above(abs(a - b) / a, OTHER_SCORE)


def other_model(folder: Path) -> Path:
    weights = {"down_blocks.9.attn2.to_k.weight": torch.ones(2, 2)}
    write_tensors(folder / "other" / "refined.safetensors", weights, "refined", {"concepts": []})
    return folder / "other"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.runs", "[nowhere]"], "is no output folder of fit or fuse"),
        (["--model.runs", "[a/run, b/run]"], "folder names that differ"),
        (["--model.runs", "[OTHER]"], "another model"),
        (["--data.synonyms", "{moon: [luna]}"], "not in data.names"),
        (["--data.synonyms", "{ship: [boat, dog]}"], "dog stands for two names"),
        (["--model.kid_subset", "1"], "model.kid_subset=1"),
        (["--model.ablation", "[nowhere.json]"], "model.ablation: nowhere.json"),
        (["--data.templates", "[a photo]"], "data.templates"),
        (["--data.seeds", "0"], "data.seeds=0"),
        (["--data.first_seed", "-1"], "data.first_seed=-1"),
        (["--model.scheduler", "Nothing"], "model.scheduler=Nothing"),
    ],
)
def test_bad_settings_are_refused(
    toy_pipeline: Path,
    toy_clip: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = str(other_model(tmp_path))
    with pytest.raises(SystemExit) as stop:
        erase_main([*command(toy_pipeline, toy_clip, tmp_path / "s.json"), *(m.replace("OTHER", other) for m in more)])
    assert message in str(stop.value.code) + capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_pipelines_are_compared_with_runs(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    erase_main(config(tmp_path, toy_pipeline, "ships", [{"target": "ship", "anchor": "sky"}]))
    whole = (tmp_path / "ships" / "pipeline").rename(tmp_path / "competitor")
    runs = ["compare", str(tmp_path / "ships"), str(whole)]
    erase_main([*runs, *command(toy_pipeline, toy_clip, tmp_path / "s.json")[1:], "--model.targets", "[ship]"])
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert set(scores) == {"original", "ships", "competitor"}
    assert scores["ships"]["after"]["top1"] == scores["competitor"]["after"]["top1"]  # the same weights twice
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 2 * 2 * 3 and "competitor" in page


def test_one_whole_pipeline_is_in_memory_at_a_time(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased = finished_run(tmp_path / "run", toy_pipeline)
    export_run(run=str(erased), format="refined")
    export_run(run=str(erased), format="pipeline")
    wholes = [tmp_path / name for name in ("a", "b", "c")]
    for whole in wholes:
        shutil.copytree(erased / "pipeline", whole)
    loaded: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []

    def load(*args: Any, **settings: Any) -> Any:
        pipeline = load_pipeline(*args, **settings)
        loaded.append(weakref.ref(pipeline.unet))
        alive.append(sum(unet() is not None for unet in loaded))
        return pipeline

    for module in (compared, evaluation):
        monkeypatch.setattr(module, "load_pipeline", load)
    runs = ["compare", *map(str, [wholes[0], erased, *wholes[1:]])]
    erase_main([*runs, *command(toy_pipeline, toy_clip, tmp_path / "s.json")[1:], "--model.targets", "[ship]"])
    assert len(alive) == 1 + 2 * len(wholes) and max(alive) == 2  # the original and one more
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert list(scores) == ["original", "a", "run", "b", "c"]
    for name in ("a", "b", "c"):  # the same weights, put into the original in its own pass
        assert scores[name]["after"]["top1"] == scores["run"]["after"]["top1"]
        close(scores[name]["quality"]["distance"], scores["run"]["quality"]["distance"], SCORES)
        close(scores[name]["quality"]["fid"], scores["run"]["quality"]["fid"], DISTANCES)
    assert not list(tmp_path.glob(".*partial"))


def test_scores_reach_a_logger(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("tensorboard.summary")
    run = finished_run(tmp_path / "run", toy_pipeline)
    export_run(run=str(run), format="refined")
    args = command(toy_pipeline, toy_clip, tmp_path / "s.json")
    args[args.index("--trainer.logger") + 1] = "TensorBoardLogger"
    erase_main([*args, "--trainer.logger.save_dir", str(tmp_path / "logs"), "--model.runs", f"[{run}]"])
    events = accumulator.EventAccumulator(str(next((tmp_path / "logs").rglob("events.*")).parent))
    events.Reload()
    tags = events.Tags()
    written = json.loads((tmp_path / "s.json").read_text())["scores"]["run"]["after"]["top1"]
    close(events.Scalars("run/top1/acc_s")[0].value, written["acc_s"], BY_HAND)
    assert "run/ship" in tags["images"]


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_reference_that_cannot_be_read_is_named(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    if content is not None:
        (folder / "a.png").write_bytes(content)
    said = exit_message(
        [*command(toy_pipeline, toy_clip, tmp_path / "s.json"), "--model.reference", str(folder)], capsys
    )
    assert (
        "model.reference" in said
        and ("holds no image" if content is None else "a.png cannot be read as an image") in said
    )
    assert not (tmp_path / "s.json").exists()


def test_another_judge_counts_what_it_cannot_see(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    export_run(run=str(run), format="refined")
    args = [*command(toy_pipeline, toy_clip, tmp_path / "s.json"), "--model.runs", f"[{run}]"]
    judge = ["--model.judge.class_path", "support.judges.Brightness", "--model.judge.init_args.names"]
    erase_main([*args, *judge, "[cat, moon, dog, ship]"])
    found = json.loads((tmp_path / "s.json").read_text())["scores"]["run"]
    # eleven or ten images in batches of three, by word and seed: every third is blank
    assert any("images after show nothing to judge" in gap for gap in found["missing"])
    assert found["after"]["top1"]["acc_s"] <= 1 and set(found["after"]["top1"]["by_word"]) >= {"ship", "dog", "cat"}
    assert all(set(row["seen_as"]) <= {"ship", "dog", "cat"} for row in found["concepts"])
    assert sum(row["undetected"] for row in found["concepts"]) > 0
    other = [*args, "--model.output", str(tmp_path / "t.json"), *judge, "[cat, moon]"]
    assert "the judge does not know ship, dog" in exit_message(other, capsys)


def test_two_ranks_score_what_one_scores(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    for format in ("refined", "pipeline"):
        export_run(run=str(run), format=format)
    runs = f"[{run}, {run / 'pipeline'}]"
    (tmp_path / "told.json").write_text(json.dumps({"ship": ["it floats"], "cat": ["it purrs"]}))
    scores = {}
    for name in ("one", "two"):
        args = command(toy_pipeline, toy_clip, tmp_path / f"{name}.json")
        args += ["--model.runs", runs, "--model.targets", "[ship]", "--model.kid_subset", "4"]
        args += ["--data.descriptions", str(tmp_path / "told.json"), "--trainer.accelerator", "cpu"]
        both = [*args, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
        ended = [forked(SCRIPT, args)] if name == "one" else ranks(SCRIPT, both)
        assert not any(done.returncode for done in ended), [done.stderr[-3000:] for done in ended]
        scores[name] = json.loads((tmp_path / f"{name}.json").read_text())["scores"]
    for model in ("run", "pipeline"):
        same_scores(scores["one"][model], scores["two"][model])
        assert scores["one"][model]["levels"] == scores["two"][model]["levels"]


def same_scores(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one["after"]["top1"]["by_word"] == two["after"]["top1"]["by_word"]
    for kind in ("probability", "clip_score"):  # images may differ by 1/255 where batches do
        close(one["after"][kind]["by_word"], two["after"][kind]["by_word"], SCORES)
    for key in ("fid", "kid", "distance"):
        close(one["quality"][key], two["quality"][key], DISTANCES)
