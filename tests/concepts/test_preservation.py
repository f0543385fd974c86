"""Names that stay, given to fit in place of a file of domain statistics."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from support.runs import config, exit_message, statistics
from support.tolerances import BY_HAND, FLOAT32_EDIT, FLOAT32_PASS, FLOAT32_SUMS, MOVED, RUN_WEIGHTS, above, close

from mace_pl.cli import erase_main
from mace_pl.commands.fuse import fuse_run
from mace_pl.concepts.concept import AUTO, read_names
from mace_pl.concepts.named import POWER, STYLE_TEMPLATES, TEMPLATES, sum_names
from mace_pl.concepts.preservation import (
    BY_NUMBER,
    GivenWeights,
    StageWeights,
    names_that_stay,
    preservation,
    weights_of,
)
from mace_pl.errors import UserError
from mace_pl.methods.chosen import chosen
from mace_pl.models.text_encoding import encode_prompts, encoder_fingerprint
from mace_pl.run import Run
from mace_pl.stages.again import Again
from mace_pl.stages.preserve import counted

FEW = ["--report_seeds", "0", "--save_pipeline", "false"]  # files that are not looked at
SHIP = [{"target": "ship", "anchor": "ground", "kind": "object"}]


def plain_sums(
    pipeline: StableDiffusionPipeline,
    names: list[str],
    styles: tuple[str, ...] = (),
    harm: torch.Tensor | None = None,
) -> torch.Tensor:
    """Σ_n h_n Σ e eᵀ token by token, half of h_n alike, half by the mean of eᵀ M e over the mean of eᵀ e."""
    grams, harms = [], []
    for name in names:
        total, moved, size = torch.zeros(32, 32, dtype=torch.float64), 0.0, 0.0
        for template in STYLE_TEMPLATES if name in styles else TEMPLATES:
            for token in encode_prompts(pipeline, [template.replace("{}", name)])[0].double():
                total += torch.outer(token, token)
                moved += 1.0 if harm is None else float(token @ harm @ token)
                size += 1.0 if harm is None else float(token @ token)
        grams.append(total)
        harms.append((moved / size) ** POWER)
    mean = sum(harms) / len(harms)
    return sum((0.5 + 0.5 * h / mean) * total for h, total in zip(harms, grams, strict=True))


@pytest.fixture(scope="module")
def pipeline(toy_pipeline: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)


def test_sums_are_those_of_the_names_that_stay(pipeline: StableDiffusionPipeline) -> None:
    names = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("house", "bird", "cat", "dog")]
    staying = names_that_stay(pipeline, [*names, "Ship"], ["ship"])
    named = sum_names(pipeline, staying, ["coexisting"])  # 72 prompts: more than one batch
    assert named is not None
    close(named.grams["coexisting"], plain_sums(pipeline, names), FLOAT32_SUMS)
    assert sum_names(pipeline, [], ["coexisting"]) is None


def test_names_count_by_the_harm_of_an_edit_and_styles_have_prompts_of_their_own(
    pipeline: StableDiffusionPipeline,
) -> None:
    names, styles = ["red house", "cat", "mosaic"], ("mosaic",)
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    harm = matrix @ matrix.T
    named = sum_names(pipeline, names, ["coexisting", "last"], styles, harm)
    assert named is not None
    expected = plain_sums(pipeline, names, styles, harm)
    close(named.grams["coexisting"], expected, FLOAT32_SUMS)
    assert named.counts is not None
    close(named.counts.mean(), torch.ones((), dtype=torch.float64), FLOAT32_PASS)
    said = counted(names, named.counts)
    first = names[int(named.counts.argmax())]
    assert f"times the mean of 3; most: {first} {float(named.counts.max()):.2g}, " in said
    close(named.grams["last"], named.last.T @ named.last, FLOAT32_SUMS)  # of methods that follow no number: all alike
    for others in (plain_sums(pipeline, names, styles), plain_sums(pipeline, names, (), harm)):
        above((others - expected).abs().max(), MOVED)
    unharmed = sum_names(pipeline, names, ["coexisting"], styles, torch.zeros_like(harm))
    assert unharmed is not None  # where nothing moves, all count alike
    close(unharmed.grams["coexisting"], plain_sums(pipeline, names, styles), FLOAT32_SUMS)


def test_names_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat\n\n dog \ncat\n", encoding="utf-8")
    assert read_names(str(file), "names") == read_names(["cat", "dog", "cat"], "names") == ["cat", "dog"]
    assert read_names(None, "names") == []
    for given in ("[dog, 5]", "{dog: 1}"):  # of which the parser makes no list of texts
        with pytest.raises(UserError, match="is no list of texts"):
            read_names(given, "names")


def test_names_that_cannot_be_preserved_are_refused(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in [("empty", "holds no name"), ("binary", "is not UTF-8"), ("none", "cannot be read")]:
        args = [*config(tmp_path, toy_pipeline, "out", SHIP), "--model.domain_names", str(tmp_path / f"{name}.txt")]
        text = exit_message(args, capsys)
        assert "model.domain_names" in text and message in text
    zero = ["--model.domain_names", "[cat]", "--model.refine.domain", "0", "--model.fuse.domain", "0"]
    text = exit_message([*config(tmp_path, toy_pipeline, "out", SHIP), *zero], capsys)
    assert "model.domain_names has no effect" in text and "model.refine.domain" in text
    assert not (tmp_path / "out").exists()


def test_fit_and_fuse_keep_names_as_a_file_of_their_statistics_does(
    tmp_path: Path, toy_pipeline: Path, pipeline: StableDiffusionPipeline
) -> None:
    file = statistics(tmp_path / "d.safetensors", encoder_fingerprint(pipeline), plain_sums(pipeline, ["cat"]))
    weights = ["--model.refine.domain", "0.5", "--model.fuse.domain", "0.25", *FEW]
    erase_main([*config(tmp_path, toy_pipeline, "file", SHIP), *weights, "--model.domain", str(file)])
    names = ["--model.domain_names", json.dumps(["cat", "ship"])]  # of one name that stays: it counts as one
    erase_main([*config(tmp_path, toy_pipeline, "names", SHIP), *weights, *names])
    erase_main(["fuse", "--run", str(tmp_path / "names"), "--output_dir", str(tmp_path / "again")])
    by_file, by_names, again = (load_file(tmp_path / run / "refined.safetensors") for run in ("file", "names", "again"))
    close(by_names, by_file, RUN_WEIGHTS)
    close(again, by_names, FLOAT32_EDIT)
    assert yaml.safe_load((tmp_path / "names/config.yaml").read_text())["model"]["domain_names"] == ["cat", "ship"]
    erase_main([*config(tmp_path, toy_pipeline, "nothing", SHIP), *FEW])
    nothing = load_file(tmp_path / "nothing/refined.safetensors")
    above(max((nothing[name] - by_names[name]).abs().max() for name in nothing), MOVED)


def test_styles_among_the_names_are_written_into_the_run_and_fused_as_they_were(
    tmp_path: Path, toy_pipeline: Path
) -> None:
    names = ["--model.domain_names", "[cat, Mosaic, house]", "--model.refine.domain", "0.5", *FEW]
    alone = [*names, "--model.method", "MaceRefinement"]
    weights = {}
    for run, more in (("auto", []), ("named", ["house"]), ("none", [])):
        given = [] if run == "auto" else ["--model.domain_styles", json.dumps(more)]
        erase_main([*config(tmp_path, toy_pipeline, run, SHIP), *alone, *given])
        weights[run] = load_file(tmp_path / run / "refined.safetensors")
        styles = yaml.safe_load((tmp_path / run / "config.yaml").read_text())["model"]["domain_styles"]
        assert styles == (["Mosaic"] if run == "auto" else more)
        for name, weight in load_file(fuse_run(str(tmp_path / run)) / "refined.safetensors").items():
            close(weight, weights[run][name], FLOAT32_EDIT)
    for one, other in (("auto", "none"), ("named", "none"), ("auto", "named")):
        above(max((weights[one][name] - weights[other][name]).abs().max() for name in weights[one]), MOVED)


def test_a_file_of_styles_is_read_once_and_styles_without_effect_are_named(
    tmp_path: Path, toy_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "styles.txt"
    file.write_text("Mosaic\nblob\n")
    alone = ["--model.domain_names", "[cat, mosaic]", "--model.refine.domain", "0.5", *FEW, "--model.method"]
    args = [*config(tmp_path, toy_pipeline, "run", SHIP), *alone, "MaceRefinement", "--model.domain_styles"]
    with caplog.at_level("INFO", logger="mace_pl"):
        erase_main([*args, str(file)])
    assert "model.domain_styles: blob changes nothing, for no such names are preserved" in caplog.messages
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["domain_styles"] == ["Mosaic", "blob"]
    file.unlink()
    again, first = (
        load_file(folder / "refined.safetensors") for folder in (fuse_run(str(tmp_path / "run")), tmp_path / "run")
    )
    erase_main([*config(tmp_path, toy_pipeline, "spelled", SHIP), *alone, "MaceRefinement"])
    spelled = load_file(tmp_path / "spelled" / "refined.safetensors")  # mosaic is a common style: the same prompts
    for name, weight in first.items():
        close(again[name], weight, FLOAT32_EDIT)
        close(spelled[name], weight, FLOAT32_EDIT)
    caplog.clear()
    with caplog.at_level("INFO", logger="mace_pl"):
        bare = [*config(tmp_path, toy_pipeline, "bare", SHIP), *alone, "UCE", "--model.domain_styles", "[mosaic]"]
        erase_main(bare)
    assert any("mosaic changes nothing, for UCE" in said for said in caplog.messages)


def test_names_of_a_relative_file_are_those_of_the_run_wherever_it_is_fused(
    tmp_path: Path, toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("names.txt").write_text("cat\nship\ndog\n")
    alone = ["--model.method", "MaceRefinement", *FEW]
    files = ["--model.domain_names", "names.txt", "--model.domain_vocabulary", "names.txt"]
    run = tmp_path / "run"
    erase_main([*config(tmp_path, toy_pipeline, "run", SHIP), *alone, *files, "--model.refine.domain", "1"])
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"]["domain_names"] == settings["model"]["domain_vocabulary"] == ["cat", "ship", "dog"]
    Path("names.txt").write_text("bird\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    fused, first = (load_file(folder / "refined.safetensors") for folder in (fuse_run(str(run)), run))
    for name, weight in first.items():
        close(fused[name], weight, FLOAT32_EDIT)
    settings["model"]["domain_names"] = "names.txt"  # written by hand
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"run: its model\.domain_names=names\.txt does not exist below .*elsewhere"):
        fuse_run(str(run), str(tmp_path / "again"))


def test_statistics_without_weight_are_named_in_the_log(
    toy_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = encoder_fingerprint(StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None))
    file = str(statistics(tmp_path / "prior.safetensors", encoder, torch.eye(32, dtype=torch.float64)))
    with caplog.at_level("INFO", logger="mace_pl"):
        preservation(file, None, [StageWeights(prior=1.0), StageWeights()], encoder, 32)
        assert not caplog.messages
        preservation(file, {file: 0.0}, [StageWeights(domain=1.0)], encoder, 32)
    assert caplog.messages == [
        f"model.prior: {file} changes nothing, for model.refine.prior and model.fuse.prior are 0",
        f"model.domain: {file} changes nothing, for its own weight is 0",
    ]


def test_weights_that_are_not_given_follow_the_number_where_something_is_preserved() -> None:
    names, nothing = {"domain_names": ["cat"]}, GivenWeights()
    without = [replace(weights, prior=0.0) for weights in BY_NUMBER]
    assert weights_of([nothing] * 2, names | {"prior": "file"}, by_number=True) == [*BY_NUMBER]
    assert weights_of([nothing] * 2, names, by_number=True) == without
    assert weights_of([nothing] * 2, {"domain_names": AUTO}, by_number=True) == without  # targets alone
    alone = weights_of([GivenWeights(identity=1.0), nothing], {"domain_names": AUTO}, by_number=True)
    assert alone == [StageWeights(1.0), StageWeights(1e3)]  # the run chooses no names where it was told a weight
    assert weights_of([nothing, GivenWeights(identity=1.0)], {"prior": "file"}, True)[0] == StageWeights(1.0, 0.001)
    for model, by_number in (({}, True), ({"prior": None}, True), (names, False)):
        assert weights_of([nothing] * 2, model, by_number) == [StageWeights(1e3)] * 2
    given = [GivenWeights(domain=8.0), GivenWeights(growth=0.25)]  # what is given is meant as it is
    one, other = weights_of(given, names, by_number=True)
    assert one == StageWeights(1.0, 0.0, 8.0, growth=0.0) and other == StageWeights(1.0, 0.0, 0.15, growth=0.25)
    assert weights_of([StageWeights()] * 2, names, by_number=True) == [StageWeights()] * 2
    assert weights_of([GivenWeights(absolute=False)] * 2, names, by_number=True)[0] == StageWeights(1e3, absolute=False)
    with pytest.raises(UserError, match=r"model\.refine\.prior=0\.1 has no effect: there is no prior"):
        weights_of([GivenWeights(prior=0.1), nothing], names, by_number=True)
    with pytest.raises(UserError, match=r"model\.fuse\.growth=0\.5 has no effect: the domain has no weight"):
        weights_of([nothing, GivenWeights(domain=0.0, growth=0.5)], names, by_number=True)


def test_an_order_without_weights_grows_with_its_targets_and_shrinks_again(
    toy_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    concepts = [*SHIP, {"target": "dog", "anchor": "sky", "kind": "object"}]
    args = config(tmp_path, toy_pipeline, "two", concepts)
    plain = yaml.safe_load((tmp_path / "two.yaml").read_text())
    del plain["model"]["refine"], plain["model"]["fuse"]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(plain))
    alone = ["--model.method", "MaceRefinement", *FEW]
    with caplog.at_level("INFO", logger="mace_pl"):
        erase_main([*args, *alone, "--model.domain_names", "[cat]"])
    assert "; the domain's is 0.15 · n^0.7 for n = 2 targets" in caplog.text
    erase_main(["fuse", "--run", str(tmp_path / "two"), "--drop", "dog", "--output_dir", str(tmp_path / "one")])
    given = ["--refine", "{domain: 0.2}", "--output_dir", str(tmp_path / "given")]
    erase_main(["fuse", "--run", str(tmp_path / "two"), *given])
    for name, weight in (("two", 0.15 * 2**0.7), ("one", 0.15), ("given", 0.2)):
        run = Run.load(str(tmp_path / name))
        assert run.config["model"]["refine"]["identity"] == BY_NUMBER[0].identity
        again = Again(run, run.base.load(None, None)[0], chosen(run.config["model"]["method"]))
        close(again.preserved.refine.domain_weight, weight, BY_HAND)
